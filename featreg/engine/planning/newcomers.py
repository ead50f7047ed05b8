"""The samples that a store does not know yet, with the classes that it has given numbers to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from featreg.engine.planning.passes import source_record
from featreg.engine.planning.selection import Selection
from featreg.errors import SourceError
from featreg.sources import Sample, Source
from featreg.stores.layout import SourceRecord

__all__ = ["KnownKeys", "Targets"]


class Targets:
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
        now = source_record(self._source, Selection.recorded(self._before))
        return attrs.evolve(now, classes=None if self._classes is None else tuple(self._classes))

    def _number(self, names: Sequence[str]) -> dict[int, int]:
        assert self._classes is not None
        self._classes += [name for name in names if name not in self._classes]
        return {number: self._classes.index(name) for number, name in enumerate(names)}


class KnownKeys:
    """The keys of ``count`` rows as sorted 128-bit hashes: 16 bytes a row, where the keys themselves might not fit.

    ``blocks`` are tables with a column of keys.
    """

    def __init__(self, blocks: Iterable[Any], count: int) -> None:
        keys = (key for block in blocks for key in block["key"].to_pylist())
        self._hashes = np.fromiter(map(_hash, keys), _HASH, count)
        self._hashes.sort()

    def unknown(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples whose keys are not among them, in order."""
        return (sample for sample in samples if not self._has(sample.key))

    def _has(self, key: str) -> bool:
        wanted = np.array(_hash(key), _HASH)
        first, last = (np.searchsorted(self._hashes, wanted, side) for side in ("left", "right"))
        return bool(first < last)


_HASH = np.dtype("S16")


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=_HASH.itemsize).digest()
