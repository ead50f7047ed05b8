"""Working on a store from what it says of itself: its source and its models."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator
from typing import Any

from featreg.engine.run import Run, Work, complete
from featreg.errors import CapabilityError
from featreg.registry import Registry, default_registry
from featreg.request import thaw
from featreg.sources import Sample, Source, open_source
from featreg.stores import FeatureStore
from featreg.stores.check import readable_manifest
from featreg.stores.layout import IndexPart, Manifest
from featreg.stores.opening import place_at
from featreg.stores.receipts import finished_tasks, read_manifest
from featreg.stores.repair import Repair
from featreg.stores.repair import repair as repair_store
from featreg.stores.writer import StoreWriter

__all__ = ["repair", "source_of", "work"]


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
    ``batch_size``, ``num_workers``, ``part``, ``max_error_rate`` and ``progress`` as of :func:`~featreg.extract`.

    Raises StoreError where there is no store, CapabilityError for a source that cannot be opened from its record (give
    it as ``source``), StoreMismatchError where this machine would make other values, and as :func:`~featreg.extract`.
    """
    place = place_at(store)
    writer = StoreWriter(place)
    if all(part.count == len(finished_tasks(place, part)) for part in writer.manifest.passes):
        return complete(writer, Work(_Nothing(), registry or default_registry()), Run())
    opened = source_of(writer.manifest, place.uri) if source is None else open_source(source)
    run = Run(seed=None if fields.get("part") else secrets.randbits(32), **fields)
    return complete(writer, Work(opened, registry or default_registry(), device=device), run)


def source_of(manifest: Manifest, uri: str) -> Source:
    """The source of a store, opened from its record.

    Raises CapabilityError for one that only the process that made it can read, and SourceError where it is gone.
    """
    record = manifest.source
    if not record.reopenable:
        raise CapabilityError(
            f"the source of {uri!r} cannot be opened from the store: it is no source of featreg",
            "a source of featreg.sources.KINDS",
            f"{record.kind!r}, {record.uri!r}",
            remedy="run featreg.extract(source, store, ...) with the same source once more: it goes on",
        )
    return open_source(record.uri, kind=record.kind, **thaw(record.options))


def repair(
    store: str | os.PathLike[str],
    *,
    retry_failed: bool = False,
    source: Source | str | os.PathLike[str] | None = None,
) -> Repair:
    """Mend a store: make anew what can be, and plan again what cannot, for the next run to do.

    ``retry_failed`` plans the tasks with failed rows again too. ``source`` is needed where the index is damaged and
    the source cannot be opened from the store. No other run may work on the store meanwhile. Raises StoreDamagedError
    where nothing can bring a file back.
    """
    place = place_at(store)

    def reindex(part: IndexPart) -> Iterator[Sample]:
        manifest = readable_manifest(place)
        assert manifest is not None
        opened = source_of(manifest, place.uri) if source is None else open_source(source)
        return itertools.islice(opened.index(), part.start, part.stop)

    done = repair_store(place, retry_failed=retry_failed, reindex=reindex)
    manifest = read_manifest(place)
    if not done.replanned and all(place.exists(task.receipt) for task in manifest.iter_tasks()):
        StoreWriter(place, manifest).finalize()
    return done


class _Nothing(Source):
    """Stands for the source of a store in which nothing is left to read."""

    kind = uri = "nothing"

    def read(self, sample: Sample) -> bytes:
        raise CapabilityError("there is nothing to read")
