"""More layers, and more rows, for a store that is there: what it has already never moves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from featreg.engine.adding import check_same_source, layer_addition
from featreg.engine.arguments import run_of
from featreg.engine.opening import source_of
from featreg.engine.planning.estimate import Estimate, estimate_addition
from featreg.engine.planning.newcomers import KnownKeys, Targets
from featreg.engine.planning.outputs import Derive, StoreDtypes
from featreg.engine.planning.selection import Selection
from featreg.engine.run import Work, complete
from featreg.errors import StoreExistsError
from featreg.extractor import Extractor
from featreg.registry import Registry, default_registry
from featreg.sources import Sample, Source
from featreg.spec import Layer
from featreg.stores import FeatureStore
from featreg.stores.layout import LayerRecord
from featreg.stores.places.opening import place_at
from featreg.stores.tables import iter_samples
from featreg.stores.writer import Plan, StoreWriter

__all__ = ["add_layers", "append", "estimate_layers", "estimate_rows"]


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
    on_estimate: Callable[[Estimate], object] = lambda _: None,
    **fields: Any,
) -> FeatureStore:
    """Compute further layers of a store's model over all its rows; the arrays that are there are not touched.

    ``pool`` is that of the new layers, ``flatten`` too: as that of the first ones where it is None. ``derive``,
    ``fit_from`` and ``store_dtype`` are as of :func:`~featreg.extract`; for layers that are derived from those that the
    store has, :func:`~featreg.derive` needs no model. ``model`` is an open extractor of exactly the new layers, or of
    those that recipes take, where the store's model cannot be opened by its name. ``source`` is needed where it cannot
    be opened from the store. ``on_estimate`` is told what there is to do before anything is planned. ``fields`` are
    ``batch_size``, ``num_workers``, ``part``, ``on_error``, ``max_error_rate``, ``progress`` and ``metrics`` as of
    :func:`~featreg.extract`. A run that stopped is gone on with by the same call.

    Raises LayerError for a layer that the store has already, StoreMismatchError where this machine has other weights or
    versions and for another source than that of the store, StoreFullError where the disk has not the room, with the
    store as it was, and as :func:`~featreg.extract`.
    """
    with layer_addition(
        store,
        layers,
        pool=pool,
        flatten=flatten,
        derive=derive,
        fit_from=fit_from,
        store_dtype=store_dtype,
        model=model,
        source=source,
        registry=registry,
        **fields,
    ) as addition:
        if not addition.is_planned:
            addition.check()
        on_estimate(addition.estimate())
        while not addition.is_planned:
            addition.check()
            with suppress(StoreExistsError):  # somebody has added something meanwhile: these layers, or others
                addition.plan()
        return complete(addition.writer, addition.work, addition.run)


def estimate_layers(
    store: str | os.PathLike[str], layers: Sequence[Layer] | Layer | None = None, **arguments: Any
) -> Estimate:
    """What :func:`add_layers` would take with these arguments: rows, bytes and free disk; nothing is written.

    Raises as that, but for StoreFullError: :meth:`Estimate.check_room` does that.
    """
    with layer_addition(store, layers, **arguments) as addition:
        if not addition.is_planned:
            addition.check()
        return addition.estimate()


def append(
    store: str | os.PathLike[str],
    *,
    model: Extractor | None = None,
    source: Source | str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
    on_estimate: Callable[[Estimate], object] = lambda _: None,
    **fields: Any,
) -> FeatureStore:
    """Give the samples that a store does not know yet, by their keys, new rows at its end.

    What was left unfinished is completed first. New classes get the numbers after the known ones; a sample that is gone
    from the source keeps its row. Of a ``fraction`` the same share is drawn; a ``limit`` does not count any more.
    Derived layers are derived with what they learnt before: nothing is fitted anew. Arguments are those of
    :func:`add_layers`.

    Raises SourceError where the source has lost its classes, StoreMismatchError for another source than that of the
    store, from which all rows are read later, StoreFullError where the disk has not the room for the new rows, with the
    store as it was, and as :func:`~featreg.extract`.
    """
    run = run_of(fields)
    writer, opened = _opened(store, source)
    work = Work(opened, registry or default_registry(), model)
    done = False
    while not done:
        complete(writer, work, run)
        with suppress(StoreExistsError):  # somebody has added something meanwhile: some of these samples, or all
            _add_rows(writer, opened, on_estimate)
            done = True
    return complete(writer, work, run)


def estimate_rows(store: str | os.PathLike[str], *, source: Source | str | os.PathLike[str] | None = None) -> Estimate:
    """What :func:`append` would take: how many samples are new, their bytes and free disk; nothing is written.

    The index of the source is read once. Raises as :func:`append`, but for StoreFullError:
    :meth:`Estimate.check_room` does that.
    """
    writer, opened = _opened(store, source)
    targets = Targets(writer.manifest.source, opened)
    return _estimate(writer, sum(1 for _ in _newcomers(writer, opened, targets)))


def _opened(
    store: str | os.PathLike[str], source: Source | str | os.PathLike[str] | None
) -> tuple[StoreWriter, Source]:
    """A store that gets more rows, and the source that they are in."""
    place = place_at(store)
    writer = StoreWriter(place)
    opened = source_of(writer.manifest, place.uri, source)
    remedy = (
        "put the new samples where the others are; or extract them into a store of their own, and featreg merge both"
    )
    check_same_source(writer.manifest, opened, place.uri, remedy)
    return writer, opened


def _add_rows(writer: StoreWriter, source: Source, on_estimate: Callable[[Estimate], object]) -> None:
    """Plan a pass for the samples that the store does not know, if there are any, and if there is room for them."""
    manifest = writer.manifest
    targets = Targets(manifest.source, source)

    def check(rows: int) -> None:
        found = _estimate(writer, rows)
        on_estimate(found)
        found.check_room()

    plan = Plan.of(manifest.passes[0], targets.record)
    writer.add_pass(plan, manifest.rows, manifest.rows, _newcomers(writer, source, targets), check)


def _newcomers(writer: StoreWriter, source: Source, targets: Targets) -> Iterator[Sample]:
    """The samples that the store does not know, with the numbers that their classes have in it."""
    manifest = writer.manifest
    known = KnownKeys(iter_samples(writer.place, manifest), manifest.rows)
    drawn = Selection.recorded(manifest.source).drawn(source.index())
    return (targets.renumbered(sample) for sample in known.unknown(drawn))


def _estimate(writer: StoreWriter, rows: int) -> Estimate:
    """What so many new rows take, in every layer of the store."""
    manifest = writer.manifest
    layers: tuple[LayerRecord, ...] = tuple(manifest.layers)
    task_rows = manifest.passes[0].task_rows
    return estimate_addition(writer.place, manifest, layers, rows, adds="rows", task_rows=task_rows)
