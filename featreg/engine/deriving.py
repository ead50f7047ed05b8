"""Layers that are derived from those of a finished store: out of core, and committed as any others."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from featreg.engine.arguments import run_of
from featreg.engine.derivation import StoredInputs
from featreg.engine.nothing import Nothing
from featreg.engine.planning.asking import reused_fits
from featreg.engine.planning.difference import same_values
from featreg.engine.planning.fingerprint import derived_fingerprint
from featreg.engine.planning.learning import write_fits
from featreg.engine.planning.outputs import Derive, Outputs, StoreDtypes, as_recipes, inputs_of
from featreg.engine.planning.passes import derived_records, row_bytes
from featreg.engine.planning.plan import task_rows
from featreg.engine.run import Work, complete
from featreg.errors import LayerError, SpecError, StoreError, StoreExistsError, near_matches
from featreg.recipe import Recipe
from featreg.registry import default_registry
from featreg.spec import Layer
from featreg.stores import FeatureStore
from featreg.stores.layout import array_names
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import write_errors
from featreg.stores.writer import Plan, StoreWriter

__all__ = ["derive"]


def derive(
    store: str | os.PathLike[str],
    recipes: Derive,
    *,
    fit_from: str | os.PathLike[str] | None = None,
    store_dtype: StoreDtypes = None,
    **fields: Any,
) -> FeatureStore:
    """Derive layers from those of a finished store, as its new layers over all its rows; returns it.

    ``recipes`` are one or several :class:`~featreg.Recipe`, or their texts, as in ``"small=C5,pooled:center:pca=64"``.
    Their inputs are layers of the store, derived ones too, and the same rows of the same layers give what they would
    have given while extracting, but for rounding. What they learn they learn from rows of this store, or take from
    the store ``fit_from``, which has derived the same. ``store_dtype`` is the type that they are stored in, one for all
    or by name: float32, but float16 where the store's model computes in it. ``fields`` are ``part``,
    ``max_error_rate``, ``progress`` and ``metrics`` as of :func:`~featreg.extract`. Held in memory are one task's
    derived rows, a block of inputs, and what is fitted.

    A row that failed in a layer it is made of fails in the derived one too. A run that stopped is gone on with by the
    same call, or by ``featreg worker``, which needs neither the model nor the source; new rows that are appended later
    are derived with the same fits. Raises StoreError where rows are pending, LayerError for a layer that the store has
    already or has not, StoreMismatchError for a recipe that ``fit_from`` has no fit of, and RequestError for steps that
    do not suit the layers.
    """
    place, asked = place_at(store), as_recipes(recipes)
    if not asked:
        raise SpecError("nothing to derive", "at least one recipe", "none")
    run = run_of(fields, ("part", "max_error_rate", "progress", "metrics"))
    writer = StoreWriter(place)
    outputs = Outputs.of_store(writer.manifest.request, asked, store_dtype, reused_fits(asked, fit_from))
    while not _is_planned(writer, outputs):
        _check_inputs(writer, asked)
        _check_complete(writer)
        with suppress(StoreExistsError):  # somebody has added something meanwhile: these layers, or others
            writer.add_pass(_plan(writer, outputs), 0, writer.manifest.rows)
    return complete(writer, Work(Nothing(), default_registry()), run)


def _is_planned(writer: StoreWriter, outputs: Outputs) -> bool:
    """Whether the store has these layers already, or another run is at work on them."""
    wanted = derived_fingerprint(outputs)
    return any(part.origin == "store" and not same_values(part.fingerprint, wanted) for part in writer.manifest.passes)


def _check_inputs(writer: StoreWriter, recipes: tuple[Recipe, ...]) -> None:
    """Raise LayerError for inputs that the store has not, and for layers that it has already."""
    known: list[Layer] = [layer.key for layer in writer.manifest.layers]
    double = [recipe.name for recipe in recipes if recipe.name in known]
    if double:
        raise LayerError(f"the store has the layers {double} already", "others than these", str(known))
    for recipe in recipes:
        for layer in recipe.inputs:
            if layer not in known:
                raise LayerError(
                    f"the recipe {recipe.name!r} takes {layer!r}, which the store has not",
                    f"some of {known}",
                    repr(layer),
                    near_matches(str(layer), map(str, known)),
                )


def _check_complete(writer: StoreWriter) -> None:
    left = FeatureStore(writer.place).summary.pending
    if left:
        raise StoreError(
            f"{left} of the {writer.manifest.rows} rows of {writer.place.uri!r} are pending",
            "a finished store",
            remedy="finish it with featreg extract or featreg worker",
        )


def _plan(writer: StoreWriter, outputs: Outputs) -> Plan:
    manifest = writer.manifest
    inputs = StoredInputs(writer.place, inputs_of(outputs.recipes))
    names = array_names([recipe.name for recipe in outputs.recipes], [layer.array for layer in manifest.layers])
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
