"""Layers that are derived from those of a finished store: out of core, and committed as any others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from featreg.derived import check_inputs
from featreg.engine.arguments import run_of
from featreg.engine.derivation import StoredInputs, input_record
from featreg.engine.nothing import Nothing
from featreg.engine.planning.asking import reused_fits
from featreg.engine.planning.difference import same_values
from featreg.engine.planning.estimate import Estimate, estimate_addition, estimate_store
from featreg.engine.planning.fingerprint import derived_fingerprint
from featreg.engine.planning.learning import write_fits
from featreg.engine.planning.outputs import Derive, Outputs, StoreDtypes, as_recipes, inputs_of
from featreg.engine.planning.passes import check_unknown, derived_records, row_bytes
from featreg.engine.planning.plan import task_rows
from featreg.engine.run import Work, complete
from featreg.errors import SpecError, StoreError, StoreExistsError
from featreg.recipe import Recipe
from featreg.registry import default_registry
from featreg.spec import Layer
from featreg.stores import FeatureStore
from featreg.stores.layout import Manifest, Pass, array_names
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import write_errors
from featreg.stores.reading.records import has_status
from featreg.stores.writer import Plan, StoreWriter

__all__ = ["derive", "estimate_derived"]


def derive(
    store: str | os.PathLike[str],
    recipes: Derive,
    *,
    fit_from: str | os.PathLike[str] | None = None,
    store_dtype: StoreDtypes = None,
    on_estimate: Callable[[Estimate], object] = lambda _: None,
    **fields: Any,
) -> FeatureStore:
    """Derive layers from finished ones of a store, as its new layers over all its rows; returns it.

    ``recipes`` are one or several :class:`~featreg.Recipe`, or their texts, as in ``"small=C5,pooled:center:pca=64"``.
    Their inputs are layers of the store, derived ones too, and the same rows of the same layers give what they would
    have given while extracting, but for rounding. What they learn they learn from rows of this store, or take from
    the store ``fit_from``, which has derived the same. ``store_dtype`` is the type that they are stored in, one for all
    or by name: float32, but float16 where the store's model computes in it. ``on_estimate`` is told what there is to do
    before anything is planned. ``fields`` are ``part``, ``max_error_rate``, ``progress`` and ``metrics`` as of
    :func:`~featreg.extract`. Held in memory are one task's derived rows, a block of inputs, and what is fitted.

    Rows may be pending in layers that no recipe takes: then these layers are derived, the others are left to those that
    compute them, and the store is unfinished still.

    A row that failed in a layer it is made of fails in the derived one too. A run that stopped is gone on with by the
    same call, or by ``featreg worker``, which needs neither the model nor the source; new rows that are appended later
    are derived with the same fits. Raises StoreError where rows are pending in a layer that a recipe takes,
    StoreFullError where the disk has not the room, with the store as it was, LayerError for a layer that the store has
    already or has not, StoreMismatchError for a recipe that ``fit_from`` has no fit of, and RequestError for steps that
    do not suit the layers.
    """
    run = run_of(fields, ("part", "max_error_rate", "progress", "metrics"))
    writer, outputs = _asked(store, recipes, fit_from, store_dtype)
    on_estimate(_estimate(writer, outputs))
    while not _own(writer, outputs):
        _check(writer, outputs)
        writer.check_writable()
        _estimate(writer, outputs).check_room()
        with suppress(StoreExistsError):  # somebody has added something meanwhile: these layers, or others
            writer.add_pass(_plan(writer, outputs), 0, writer.manifest.rows)
    wanted = derived_fingerprint(outputs)
    return complete(
        writer,
        Work(Nothing(), default_registry()),
        run,
        only=lambda part: _derives(part, wanted),
    )


def estimate_derived(
    store: str | os.PathLike[str],
    recipes: Derive,
    *,
    fit_from: str | os.PathLike[str] | None = None,
    store_dtype: StoreDtypes = None,
) -> Estimate:
    """What :func:`derive` would take: rows, bytes and free disk; nothing is learnt, and nothing is written.

    Raises as that, but for StoreFullError: :meth:`Estimate.check_room` does that.
    """
    return _estimate(*_asked(store, recipes, fit_from, store_dtype))


def _asked(
    store: str | os.PathLike[str], recipes: Derive, fit_from: str | os.PathLike[str] | None, store_dtype: StoreDtypes
) -> tuple[StoreWriter, Outputs]:
    """The store, and what is to be derived from its layers."""
    place, asked = place_at(store), as_recipes(recipes)
    if not asked:
        raise SpecError("nothing to derive", "at least one recipe", "none")
    writer = StoreWriter(place)
    return writer, Outputs.of_store(writer.manifest.request, asked, store_dtype, reused_fits(asked, fit_from))


def _derives(part: Pass, wanted: Mapping[str, Any]) -> bool:
    return part.origin == "store" and not same_values(part.fingerprint, wanted)


def _own(writer: StoreWriter, outputs: Outputs) -> tuple[Pass, ...]:
    """The passes of these layers, where the store has them already, or another run is at work on them."""
    wanted = derived_fingerprint(outputs)
    return tuple(part for part in writer.manifest.passes if _derives(part, wanted))


def _estimate(writer: StoreWriter, outputs: Outputs) -> Estimate:
    """What the layers take, or what is left of them; raises as :func:`_check`."""
    manifest, own = writer.manifest, _own(writer, outputs)
    if own:
        return estimate_store(writer.place, manifest, own)
    _check(writer, outputs)
    given = tuple(input_record(manifest, key) for key in inputs_of(outputs.recipes))
    layers = tuple(derived_records(outputs, given, outputs.fits, _names(manifest, outputs)))
    rows = task_rows(row_bytes(layers))
    return estimate_addition(writer.place, manifest, layers, manifest.rows, adds="layers", task_rows=rows, passes=())


def _names(manifest: Manifest, outputs: Outputs) -> Mapping[Layer, str]:
    return array_names([recipe.name for recipe in outputs.recipes], [layer.array for layer in manifest.layers])


def _check(writer: StoreWriter, outputs: Outputs) -> None:
    _check_inputs(writer, outputs.recipes)
    _check_complete(writer, inputs_of(outputs.recipes))


def _check_inputs(writer: StoreWriter, recipes: tuple[Recipe, ...]) -> None:
    """Raise LayerError for inputs that the store has not, and for layers that it has already."""
    check_unknown([recipe.name for recipe in recipes], writer.manifest)
    known = [layer.key for layer in writer.manifest.layers]
    for recipe in recipes:
        check_inputs(recipe, known, "which the store has not")


def _check_complete(writer: StoreWriter, layers: Sequence[Layer]) -> None:
    """Raise StoreError where rows are pending in a layer that is taken."""
    left = int(has_status(FeatureStore(writer.place), "pending", layers).sum())
    if left:
        raise StoreError(
            f"{left} of the {writer.manifest.rows} rows of {writer.place.uri!r} are pending in {list(layers)}",
            "finished layers",
            remedy="finish them with featreg worker STORE",
        )


def _plan(writer: StoreWriter, outputs: Outputs) -> Plan:
    manifest = writer.manifest
    inputs = StoredInputs(writer.place, inputs_of(outputs.recipes))
    names = _names(manifest, outputs)
    tuple(derived_records(outputs, inputs.given, outputs.fits, names))  # whatever speaks against it is said first
    fitted = {**outputs.fits, **inputs.fit(outputs.to_fit)}
    with write_errors(writer.place):
        write_fits(writer.place, fitted)
    layers = tuple(derived_records(outputs, inputs.given, fitted, names))
    return Plan(
        request=manifest.request,
        fingerprint=derived_fingerprint(outputs),
        layers=layers,
        source=manifest.source,
        task_rows=task_rows(row_bytes(layers)),
        batch_size=manifest.passes[0].batch_size,
        origin="store",
        inputs=inputs.given,
    )
