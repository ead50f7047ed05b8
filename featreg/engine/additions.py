"""More layers, and more rows, for a store that is there: what it has already never moves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from featreg.engine.difference import check_same_model
from featreg.engine.planning import make_plan, source_record
from featreg.engine.resume import source_of
from featreg.engine.run import Run, Work, complete
from featreg.errors import LayerError, SourceError
from featreg.extractor import Extractor, create_extractor
from featreg.registry import Registry, default_registry
from featreg.sources import Sample, Source, open_source
from featreg.spec import Layer
from featreg.stores import FeatureStore
from featreg.stores.layout import SourceRecord
from featreg.stores.opening import place_at
from featreg.stores.places import Place
from featreg.stores.tables import iter_samples
from featreg.stores.writer import Plan, StoreWriter

__all__ = ["add_layers", "append"]


def add_layers(
    store: str | os.PathLike[str],
    layers: Sequence[Layer] | Layer,
    *,
    pool: Any = None,
    model: Extractor | None = None,
    source: Source | str | os.PathLike[str] | None = None,
    registry: Registry | None = None,
    **fields: Any,
) -> FeatureStore:
    """Compute further layers of a store's model over all its rows; the arrays that are there are not touched.

    ``pool`` is that of the new layers. ``model`` is an open extractor of exactly these layers, where the store's model
    cannot be opened by its name. ``source`` is needed where it cannot be opened from the store. ``fields`` are
    ``batch_size``, ``num_workers``, ``part``, ``max_error_rate`` and ``progress`` as of :func:`~featreg.extract`.
    A run that stopped is gone on with by the same call.

    Raises LayerError for a layer that the store has already, StoreMismatchError where this machine has other weights or
    versions, and as :func:`~featreg.extract`.
    """
    place, registry = place_at(store), registry or default_registry()
    writer = StoreWriter(place)
    opened = source_of(writer.manifest, place.uri) if source is None else open_source(source)
    request = attrs.evolve(writer.manifest.request, layers=layers, pool=pool)
    extractor = create_extractor(request, registry=registry) if model is None else model
    try:
        if not any(part.request == extractor.request for part in writer.manifest.passes[1:]):
            _check_new(writer, extractor.request.layers)
            size = fields.get("batch_size") or writer.manifest.passes[0].batch_size
            taken = [layer.array for layer in writer.manifest.layers]
            plan = make_plan(writer.manifest.source, extractor, registry, taken=taken, batch_size=size)
            if model is None:  # what the state of a module of your own is called may depend on its layers
                check_same_model(writer.manifest.fingerprint, plan.fingerprint, place.uri)
            writer.add_pass(plan, 0, writer.manifest.rows)
        return complete(writer, Work(opened, registry, extractor), Run(**fields))
    finally:
        if model is None:
            extractor.close()


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
    from the source keeps its row. Arguments are those of :func:`add_layers`.

    Raises SourceError where the source has lost its classes, and as :func:`~featreg.extract`.
    """
    place, registry = place_at(store), registry or default_registry()
    writer = StoreWriter(place)
    opened = source_of(writer.manifest, place.uri) if source is None else open_source(source)
    work, run = Work(opened, registry, model), Run(**fields)
    complete(writer, work, run)
    first = writer.manifest.passes[0]
    targets = _Targets(writer.manifest.source, opened)
    known = _Keys(place, writer)
    samples = (targets.renumbered(sample) for sample in known.unknown(opened.index()))
    plan = Plan(first.request, first.fingerprint, first.layers, targets.record, first.task_rows, first.batch_size)
    writer.add_pass(plan, writer.manifest.rows, writer.manifest.rows, samples)
    return complete(writer, work, run)


def _check_new(writer: StoreWriter, layers: Sequence[Layer]) -> None:
    known = [layer.key for layer in writer.manifest.layers]
    double = [layer for layer in layers if layer in known]
    if double:
        raise LayerError(f"the store has the layers {double} already", "others than these", str(known))


class _Targets:
    """The classes of a source in the numbers of a store, whose own never change."""

    def __init__(self, record: SourceRecord, source: Source) -> None:
        self._before = record
        self._source = source
        self._classes = None if record.classes is None else list(record.classes)
        self._numbers: Mapping[int, int] | None = None

    def renumbered(self, sample: Sample) -> Sample:
        """A sample with its class in the store's numbers; raises SourceError where the source has lost its classes."""
        if self._classes is None or sample.target is None:
            if self._classes is not None:
                raise SourceError(
                    "the new samples have no class, and those of the store have",
                    f"some of {len(self._classes)} classes, or new ones",
                    repr(sample.key),
                    remedy="put them into sub-folders, or extract them into a store of their own",
                )
            return sample
        if self._numbers is None:
            self._numbers = self._number(self._source.classes or ())
        return attrs.evolve(sample, target=self._numbers[sample.target])

    def record(self) -> SourceRecord:
        """The source as it is after these samples."""
        now = source_record(self._source, self._before.limit)
        return attrs.evolve(now, classes=None if self._classes is None else tuple(self._classes))

    def _number(self, names: Sequence[str]) -> dict[int, int]:
        assert self._classes is not None
        self._classes += [name for name in names if name not in self._classes]
        return {number: self._classes.index(name) for number, name in enumerate(names)}


class _Keys:
    """The keys of a store as sorted 128-bit hashes: 16 bytes a row, where the keys themselves might not fit."""

    def __init__(self, place: Place, writer: StoreWriter) -> None:
        blocks = [_hashes(block["key"].to_pylist()) for block in iter_samples(place, writer.manifest)]
        pairs = np.concatenate(blocks)
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        self._high, self._low = pairs[:, 0].copy(), pairs[:, 1].copy()

    def unknown(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples whose keys are not among them, in order."""
        return (sample for sample in samples if not self._has(sample.key))

    def _has(self, key: str) -> bool:
        high, low = _hashes([key])[0]
        first, last = np.searchsorted(self._high, high, "left"), np.searchsorted(self._high, high, "right")
        return bool((self._low[first:last] == low).any())


def _hashes(keys: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    digests = b"".join(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest() for key in keys)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)
