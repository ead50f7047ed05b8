"""Working on a store from what it says of itself: its source and its models."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from typing import Any

import attrs

from featreg.derived import FittedRecipe
from featreg.engine.arguments import run_of
from featreg.engine.nothing import Nothing
from featreg.engine.opening import source_of
from featreg.engine.planning.newcomers import KnownKeys, Targets
from featreg.engine.planning.selection import Selection
from featreg.engine.relearning import learn_again
from featreg.engine.run import Work, complete
from featreg.registry import Registry, default_registry
from featreg.sources import Sample, Source
from featreg.stores import FeatureStore
from featreg.stores.check import readable_manifest
from featreg.stores.index import Index
from featreg.stores.layout import IndexPart, LayerRecord, Manifest, Pass
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import Place
from featreg.stores.receipts import finished_tasks, read_manifest
from featreg.stores.repair import Repair
from featreg.stores.repair import repair as repair_store
from featreg.stores.staging import is_whole
from featreg.stores.writer import StoreWriter

__all__ = ["repair", "work"]


def work(
    store: str | os.PathLike[str],
    *,
    source: Source | str | os.PathLike[str] | None = None,
    device: str | None = None,
    registry: Registry | None = None,
    **fields: Any,
) -> FeatureStore:
    """Help to complete a store, or complete it alone, with nothing but the store at hand.

    The source and the models are opened from the store's own record, and the tasks are taken in an order of this
    worker's own. ``device`` is where the model runs here, of the kind that the store was begun on. ``fields`` are
    ``batch_size``, ``num_workers``, ``part``, ``on_error``, ``max_error_rate``, ``progress`` and ``metrics`` as of
    :func:`~featreg.extract`.

    Raises StoreError where there is no store, CapabilityError for a source that cannot be opened from its record (give
    it as ``source``), StoreMismatchError where this machine would make other values, and as :func:`~featreg.extract`.
    """
    place = place_at(store)
    writer = StoreWriter(place)
    run = attrs.evolve(run_of(fields), seed=None if fields.get("part") else secrets.randbits(32))
    opened = source_of(writer.manifest, place.uri, source) if _needs_samples(writer) else Nothing()
    return complete(writer, Work(opened, registry or default_registry(), device=device), run)


def _needs_samples(writer: StoreWriter) -> bool:
    """Whether anything is left for a model; layers that are derived from those of the store need none."""
    manifest = writer.manifest
    short = any(part.origin == "model" and part.stop < manifest.rows for part in manifest.groups.values())
    return short or any(
        part.origin == "model" and part.count > len(finished_tasks(writer.place, part)) for part in manifest.passes
    )


def _samples_again(place: Place, manifest: Manifest, part: IndexPart, source: Source) -> Iterator[Sample]:
    """The samples of a part of the index: those that no other part has, as they were taken when it was written."""
    others = [other for other in manifest.index if other != part and is_whole(place, other.name, other.sha256)]
    known = KnownKeys(Index(place, others).blocks(), sum(other.stop - other.start for other in others))
    planned = next(one for one in manifest.passes if one.index == part)
    targets = Targets(planned.source, source)
    drawn = known.unknown(Selection.recorded(planned.source).drawn(source.index()))
    for sample in itertools.islice(drawn, part.stop - part.start):
        yield sample if sample.target is None else targets.renumbered(sample)


def repair(
    store: str | os.PathLike[str],
    *,
    retry_failed: bool = False,
    source: Source | str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
    force: bool = False,
) -> Repair:
    """Mend a store: make anew what can be, and plan again what cannot, for the next run to do.

    ``retry_failed`` plans the tasks with failed rows again too. ``source`` is needed where the index is damaged and
    the source cannot be opened from the store. What a derived layer has learnt is learnt again where it is lost, copy
    and all, from the samples or the layers that it was learnt from, and must come out the same. No other run may work
    on the store meanwhile: workers that seem to be at work are an error, unless with ``force``. Raises StoreError for
    them, and StoreDamagedError where nothing can bring a file back.
    """
    place, registry = place_at(store), registry or default_registry()

    def samples_of(manifest: Manifest) -> Source:
        return source_of(manifest, place.uri, source)

    def reindex(part: IndexPart) -> Iterator[Sample]:
        manifest = readable_manifest(place)
        assert manifest is not None
        return _samples_again(place, manifest, part, samples_of(manifest))

    def refit(part: Pass, layer: LayerRecord) -> FittedRecipe | None:
        manifest = readable_manifest(place)
        assert manifest is not None
        return learn_again(place, manifest, part, layer, source=lambda: samples_of(manifest), registry=registry)

    done = repair_store(place, retry_failed=retry_failed, reindex=reindex, refit=refit, force=force)
    manifest = read_manifest(place)
    if not done.replanned and all(place.exists(task.receipt) for task in manifest.iter_tasks()):
        StoreWriter(place, manifest).finalize()
    return done
