"""Layers that are about to be added to a store: what speaks against it is said before anything is planned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from featreg.engine.arguments import run_of
from featreg.engine.loop.batching import settle_batch_size
from featreg.engine.opening import source_of
from featreg.engine.planning.asking import ask
from featreg.engine.planning.difference import check_same_model, refuse
from featreg.engine.planning.estimate import Estimate, estimate_addition, estimate_store
from featreg.engine.planning.fingerprint import fingerprint
from featreg.engine.planning.learning import make_planner
from featreg.engine.planning.outputs import Derive, Outputs, StoreDtypes, as_kept, as_recipes, inputs_of
from featreg.engine.planning.passes import check_unknown, make_plan
from featreg.engine.planning.plan import MAX_TASK_ROWS
from featreg.engine.run import Run, Work
from featreg.extractor import Extractor, create_extractor
from featreg.recipe import Recipe
from featreg.registry import Registry, default_registry
from featreg.sources import Source
from featreg.spec import ExtractionRequest, Layer
from featreg.stores.layout import Manifest
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import write_errors
from featreg.stores.writer import StoreWriter

__all__ = ["LayerAddition", "check_same_source", "layer_addition"]

MERGED = "merge"
"""The kind of the source of merged stores, which names no place to read from: it is given each time."""


@attrs.frozen
class LayerAddition:
    """Layers for all rows of a store, by a model that is open."""

    writer: StoreWriter
    work: Work
    extractor: Extractor
    outputs: Outputs
    run: Run
    is_opened: bool
    """Whether the model was opened by the name that the store has for it, and not given by the caller."""

    @property
    def is_planned(self) -> bool:
        """Whether a pass for these layers is there, of an earlier run or of another one at work."""
        return any(
            part.origin == "model"
            and part.request == self.extractor.request
            and part.fingerprint.get("outputs", {}) == self.outputs.document
            for part in self.writer.manifest.passes[1:]
        )

    def check(self) -> None:
        """Raise LayerError for layers that the store has, StoreMismatchError where this machine makes other values."""
        manifest = self.writer.manifest
        check_unknown([*self.outputs.kept, *(recipe.name for recipe in self.outputs.recipes)], manifest)
        if self.is_opened:  # what the state of a module of your own is called may depend on its layers
            now = fingerprint(self.extractor, self.work.registry)
            check_same_model(manifest.fingerprint, now, self.writer.place.uri)

    def estimate(self) -> Estimate:
        """What the layers take, or what is left where they are planned already; nothing is written."""
        manifest, place = self.writer.manifest, self.writer.place
        if self.is_planned:
            return estimate_store(place, manifest)
        plan = make_plan(
            manifest.source,
            self.extractor,
            self.work.registry,
            batch_size=manifest.passes[0].batch_size,
            taken=self._taken,
            outputs=self.outputs,
            fitted=self.outputs.fits,
        )
        return estimate_addition(place, manifest, plan.layers, manifest.rows, adds="layers", task_rows=plan.task_rows)

    def plan(self) -> None:
        """Let recipes learn, and plan the pass; raises StoreExistsError where somebody has added something meanwhile.

        Raises StoreFullError where the disk has not the room, and StoreDeniedError for a store that cannot be written
        to, before anything is planned.
        """
        manifest = self.writer.manifest
        self.writer.check_writable()
        self.estimate().check_room()
        size = self.run.batch_size or manifest.passes[0].batch_size
        settled = settle_batch_size(size, self.extractor, MAX_TASK_ROWS)
        planner = make_planner(
            manifest.source,
            self.work.source,
            self.extractor,
            self.work.registry,
            outputs=self.outputs,
            options=attrs.evolve(self.run.options(manifest.passes[0]), batch_size=settled),
            taken=self._taken,
            progress=self.run.progress,
        )
        with write_errors(self.writer.place):
            plan = planner(self.writer.place, manifest.index)
        self.writer.add_pass(plan, 0, manifest.rows)

    @property
    def _taken(self) -> list[str]:
        return [layer.array for layer in self.writer.manifest.layers]


@contextmanager
def layer_addition(
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
) -> Iterator[LayerAddition]:
    """What :func:`~featreg.engine.add_layers` is asked for, with the model open; raises as that."""
    place, registry, run = place_at(store), registry or default_registry(), run_of(fields)
    writer = StoreWriter(place)
    opened = source_of(writer.manifest, place.uri, source)
    if source is not None and writer.manifest.source.kind != MERGED:
        check_same_source(writer.manifest, opened, place.uri, "give the source of the store, or leave it out in Python")
    recipes = as_recipes(derive)
    asked = _asked_besides(writer.manifest, layers, pool, flatten, recipes) if model is None else model
    kept = as_kept(layers) if recipes else None
    outputs = ask(asked, None, {}, derive=recipes, store_dtype=store_dtype, fit_from=fit_from, kept=kept)
    extractor = create_extractor(outputs.request, registry=registry) if model is None else model
    try:
        work = Work(opened, registry, extractor)
        yield LayerAddition(writer, work, extractor, outputs, run, is_opened=model is None)
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


def check_same_source(manifest: Manifest, source: Source, uri: str, remedy: str) -> None:
    """Raise StoreMismatchError for another source: all rows of a store are read from one."""
    record = manifest.source
    here, there = {"kind": source.kind, "uri": source.uri}, {"kind": record.kind, "uri": record.uri}
    refuse(
        {f"source.{name}": (there[name], here[name]) for name in here if there[name] != here[name]},
        f"the samples of the store {uri!r} come from another source",
        remedy,
    )
