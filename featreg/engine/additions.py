"""More layers, and more rows, for a store that is there: what it has already never moves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import attrs

from featreg.engine.arguments import run_of
from featreg.engine.loop.batching import settle_batch_size
from featreg.engine.opening import source_of
from featreg.engine.planning.asking import ask
from featreg.engine.planning.difference import check_same_model, refuse
from featreg.engine.planning.fingerprint import fingerprint
from featreg.engine.planning.learning import make_planner
from featreg.engine.planning.newcomers import KnownKeys, Targets
from featreg.engine.planning.outputs import Derive, Outputs, StoreDtypes, as_kept, as_recipes, inputs_of
from featreg.engine.planning.plan import MAX_TASK_ROWS
from featreg.engine.planning.selection import Selection
from featreg.engine.run import Run, Work, complete
from featreg.errors import LayerError, StoreExistsError
from featreg.extractor import Extractor, create_extractor
from featreg.recipe import Recipe
from featreg.registry import Registry, default_registry
from featreg.sources import Source
from featreg.spec import ExtractionRequest, Layer
from featreg.stores import FeatureStore
from featreg.stores.layout import Manifest
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import write_errors
from featreg.stores.tables import iter_samples
from featreg.stores.writer import Plan, StoreWriter

__all__ = ["add_layers", "append"]


def add_layers(
    store: str | os.PathLike[str],
    layers: Sequence[Layer] | Layer | None = None,
    *,
    pool: Any = None,
    flatten: bool | Sequence[Layer] | None = None,
    derive: Derive = (),
    fit_from: str | os.PathLike[str] | None = None,
    store_dtype: StoreDtypes = None,
    model: Extractor | None = None,
    source: Source | str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
    **fields: Any,
) -> FeatureStore:
    """Compute further layers of a store's model over all its rows; the arrays that are there are not touched.

    ``pool`` is that of the new layers, ``flatten`` too: as that of the first ones where it is None. ``derive``,
    ``fit_from`` and ``store_dtype`` are as of :func:`~featreg.extract`; for layers that are derived from those that the
    store has, :func:`~featreg.derive` needs no model. ``model`` is an open extractor of exactly the new layers, or of
    those that recipes take, where the store's model cannot be opened by its name. ``source`` is needed where it cannot
    be opened from the store. ``fields`` are ``batch_size``, ``num_workers``, ``part``, ``on_error``,
    ``max_error_rate``, ``progress`` and ``metrics`` as of :func:`~featreg.extract`. A run that stopped is gone on with
    by the same call.

    Raises LayerError for a layer that the store has already, StoreMismatchError where this machine has other weights or
    versions, and as :func:`~featreg.extract`.
    """
    place, registry, run = place_at(store), registry or default_registry(), run_of(fields)
    writer = StoreWriter(place)
    opened = source_of(writer.manifest, place.uri, source)
    recipes = as_recipes(derive)
    asked = _asked_besides(writer.manifest, layers, pool, flatten, recipes) if model is None else model
    kept = as_kept(layers) if recipes else None
    outputs = ask(asked, None, {}, derive=recipes, store_dtype=store_dtype, fit_from=fit_from, kept=kept)
    extractor = create_extractor(outputs.request, registry=registry) if model is None else model
    try:
        while not _is_planned(writer, extractor, outputs):
            _check_new(writer, [*outputs.kept, *(recipe.name for recipe in outputs.recipes)])
            if model is None:  # what the state of a module of your own is called may depend on its layers
                check_same_model(writer.manifest.fingerprint, fingerprint(extractor, registry), place.uri)
            with suppress(StoreExistsError):  # somebody has added something meanwhile: these layers, or others
                _add(writer, Work(opened, registry, extractor), extractor, outputs, run)
        return complete(writer, Work(opened, registry, extractor), run)
    finally:
        if model is None:
            extractor.close()


def _asked_besides(
    manifest: Manifest, layers: Sequence[Layer] | Layer | None, pool: Any, flatten: Any, recipes: Sequence[Recipe]
) -> ExtractionRequest:
    """The request of the store's model for further layers, or for those that recipes take."""
    first = manifest.passes[0]
    if flatten is None:
        held = first.fingerprint.get("outputs", {}).get("flatten", ())
        flatten = first.request.flatten is True or (bool(held) and len(held) == len(first.kept))
    if recipes and not as_kept(layers):
        return attrs.evolve(first.request, layers=inputs_of(recipes), pool=pool, flatten=False)
    return attrs.evolve(first.request, layers=as_kept(layers), pool=pool, flatten=flatten)


def _is_planned(writer: StoreWriter, extractor: Extractor, outputs: Outputs) -> bool:
    """Whether a pass for these layers is there, of an earlier run or of another one at work."""
    return any(
        part.origin == "model"
        and part.request == extractor.request
        and part.fingerprint.get("outputs", {}) == outputs.document
        for part in writer.manifest.passes[1:]
    )


def _add(writer: StoreWriter, work: Work, extractor: Extractor, outputs: Outputs, run: Run) -> None:
    """Plan the pass; raises StoreExistsError where somebody else has added something meanwhile."""
    manifest = writer.manifest
    size = run.batch_size or manifest.passes[0].batch_size
    options = attrs.evolve(
        run.options(manifest.passes[0]), batch_size=settle_batch_size(size, extractor, MAX_TASK_ROWS)
    )
    taken = [layer.array for layer in manifest.layers]
    planner = make_planner(
        manifest.source,
        work.source,
        extractor,
        work.registry,
        outputs=outputs,
        options=options,
        taken=taken,
        progress=run.progress,
    )
    with write_errors(writer.place):
        plan = planner(writer.place, manifest.index)
    writer.add_pass(plan, 0, manifest.rows)


def append(
    store: str | os.PathLike[str],
    *,
    model: Extractor | None = None,
    source: Source | str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
    **fields: Any,
) -> FeatureStore:
    """Give the samples that a store does not know yet, by their keys, new rows at its end.

    What was left unfinished is completed first. New classes get the numbers after the known ones; a sample that is gone
    from the source keeps its row. Of a ``fraction`` the same share is drawn; a ``limit`` does not count any more.
    Derived layers are derived with what they learnt before: nothing is fitted anew. Arguments are those of
    :func:`add_layers`.

    Raises SourceError where the source has lost its classes, StoreMismatchError for another source than that of the
    store, from which all rows are read later, and as :func:`~featreg.extract`.
    """
    place, registry, run = place_at(store), registry or default_registry(), run_of(fields)
    writer = StoreWriter(place)
    opened = source_of(writer.manifest, place.uri, source)
    _check_same_source(writer.manifest, opened, place.uri)
    work = Work(opened, registry, model)
    done = False
    while not done:
        complete(writer, work, run)
        with suppress(StoreExistsError):  # somebody has added something meanwhile: some of these samples, or all
            _add_rows(writer, opened)
            done = True
    return complete(writer, work, run)


def _add_rows(writer: StoreWriter, source: Source) -> None:
    """Plan a pass for the samples that the store does not know, if there are any."""
    manifest = writer.manifest
    targets = Targets(manifest.source, source)
    known = KnownKeys(iter_samples(writer.place, manifest), manifest.rows)
    drawn = Selection.recorded(manifest.source).drawn(source.index())
    samples = (targets.renumbered(sample) for sample in known.unknown(drawn))
    writer.add_pass(Plan.of(manifest.passes[0], targets.record), manifest.rows, manifest.rows, samples)


def _check_same_source(manifest: Manifest, source: Source, uri: str) -> None:
    """Raise StoreMismatchError for another source: whatever is done later reads all rows from one."""
    record = manifest.source
    here, there = {"kind": source.kind, "uri": source.uri}, {"kind": record.kind, "uri": record.uri}
    refuse(
        {f"source.{name}": (there[name], here[name]) for name in here if there[name] != here[name]},
        f"the samples of the store {uri!r} come from another source",
        "put the new samples where the others are; or extract them into a store of their own, and featreg merge both",
    )


def _check_new(writer: StoreWriter, layers: Sequence[Layer]) -> None:
    known = [layer.key for layer in writer.manifest.layers]
    double = [layer for layer in layers if layer in known]
    if double:
        raise LayerError(f"the store has the layers {double} already", "others than these", str(known))
