"""Reading a store."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import attrs
import numpy as np

from featreg.derived import FittedRecipe
from featreg.errors import CapabilityError, LayerError, StoreDamagedError, near_matches
from featreg.extras import data_extra
from featreg.spec import FeatureInfo, Layer
from featreg.stores.fits import read_fit
from featreg.stores.layout import LayerRecord, Manifest
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import LocalPlace, Place
from featreg.stores.progress import PassWork
from featreg.stores.reading.array import LayerArray
from featreg.stores.reading.guard import GuardedStore
from featreg.stores.reading.identity import Identity
from featreg.stores.reading.pending import Pending
from featreg.stores.reading.records import as_targets
from featreg.stores.reading.rows import Rows, as_layers
from featreg.stores.receipts import read_finish, read_manifest
from featreg.stores.tables import Counts, iter_samples, made_samples

with data_extra():
    import pyarrow
    import zarr

__all__ = ["FeatureStore", "Summary", "open_store"]


def open_store(path: str | os.PathLike[str]) -> FeatureStore:
    """Open the features in a folder or at a URL, finished or not; no feature is read or looked for yet.

    Raises SpecError for what is no path, and StoreError where there is no store, where its documents are damaged, or
    where another version wrote it.
    """
    return FeatureStore(path)


@attrs.frozen
class Summary:
    """How a store stands, in rows; ``skipped`` counts the source's files that are no images and have no row.

    The rest is known to the run that wrote the store only: ``seconds`` from the first image to the last receipt,
    ``done`` rows in that time, ``done_before`` rows that were finished when it began. Where layers were added, these
    two count a row once for each pass. ``worked`` are the passes of which rows were finished in that time.
    """

    rows: int
    ok: int
    failed: int
    pending: int
    skipped: int
    seconds: float | None = None
    done: int | None = None
    done_before: int | None = None
    worked: tuple[PassWork, ...] = ()

    @property
    def images_per_second(self) -> float | None:
        """Finished rows per second of that run."""
        return None if not self.seconds or self.done is None else self.done / self.seconds


class FeatureStore(Rows):
    """The features of a data set, row by row in the order of its index.

    ``store["C5"]`` is a lazy :class:`~featreg.stores.LayerArray` of (rows, ...), which is read when it is indexed as in
    NumPy: ``store["C5"][store.status == "ok"]``. A layer is found by the key it was asked for, or by its level, head or
    native name. ``len(store)`` counts rows; a row that failed or is pending holds NaN, and ``status`` tells which.

    What was pending at opening stays pending here, though workers go on: open the store again to see what they did.
    ``pending`` has the tasks of these rows. Whatever reads raises StoreError where the path holds another store by now,
    and where rows that are done are lost.
    """

    __iter__: ClassVar[None] = None  # neither rows nor layers: say store.keys or store.layers

    def __init__(
        self,
        path: str | os.PathLike[str] | Place,
        *,
        seconds: float | None = None,
        done: int | None = None,
        done_before: int | None = None,
        worked: tuple[PassWork, ...] = (),
    ) -> None:
        self.place = path if isinstance(path, Place) else place_at(path)
        self.identity = Identity(self.place)
        self.manifest: Manifest = read_manifest(self.place)
        self._records = {record.key: record for record in self.manifest.layers}
        self._run = seconds, done, done_before, worked
        self._finish = read_finish(self.place, self.manifest)
        finished = self._finish is not None
        self.pending = Pending(self.place, self.manifest, finished=finished)
        guarded = GuardedStore(self.place, self.manifest, self.pending, finished=finished)
        self._arrays = {record.key: self._array(guarded, record) for record in self.manifest.layers}
        self.identity.check()

    @property
    def path(self) -> Path:
        """The folder of the store; raises CapabilityError for one at a URL, see :attr:`uri`."""
        if not isinstance(self.place, LocalPlace):
            raise CapabilityError(f"the store {self.uri!r} is no folder of this machine", "a local store", "a URL")
        return self.place.root

    @property
    def uri(self) -> str:
        """Where the store is: a path or a URL."""
        return self.place.uri

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The keys of the layers, as they were asked for."""
        return tuple(self._records)

    @property
    def info(self) -> Mapping[Layer, FeatureInfo]:
        """The description of each layer."""
        return MappingProxyType({key: record.info for key, record in self._records.items()})

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the targets; None where the source has none."""
        return self.manifest.source.classes

    def fitted(self, layer: Layer) -> FittedRecipe:
        """What a derived layer has learnt: its recipe, with the means and components of its steps.

        Raises LayerError for a layer that learnt nothing, StoreDamagedError for a damaged file.
        """
        record = self._find(layer)
        if record.fit is None:
            raise LayerError(f"{layer!r} has learnt nothing", "a derived layer with a step that learns", repr(layer))
        return read_fit(self.place, record.fit)

    def iter_samples(self, layers: Layer | Sequence[Layer] | None = None) -> Iterator[Any]:
        """The sample table a block at a time, as Arrow tables: row, key, uri, target, status, error.

        Status and error are those of some layers, as far as these are computed together, or of all. Raises LayerError
        for a layer that there is not, StoreDamagedError where the index, a receipt or the table is damaged.
        """
        self.identity.check()
        asked = None if layers is None else {self._find(layer).key for layer in as_layers(self, layers)}
        if self._finish is not None and (not self._finish.failed or self._is_all(asked)):
            yield from iter_samples(self.place, self.manifest)
        else:  # the table may be there by now, and say more than was known at opening
            yield from made_samples(self.place, self.manifest, self.pending, asked)
        self.identity.check()

    def _is_all(self, keys: Collection[Layer] | None) -> bool:
        """Whether the status of a row in some layers is that in all: each pass has one of them."""
        parts = self.manifest.groups.values()
        return keys is None or all(any(layer.key in keys for layer in part.layers) for part in parts)

    @functools.cached_property
    def samples(self) -> Any:
        """The whole sample table, as an Arrow table."""
        return pyarrow.concat_tables(list(self.iter_samples()))

    @functools.cached_property
    def keys(self) -> list[str]:
        """The key of every sample, in row order."""
        return list(self._column("key").to_pylist())

    @functools.cached_property
    def targets(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """The class of every row, as an index into :attr:`classes`, -1 where it has none; None where no row has one."""
        column = self._column("target")
        return None if 0 < len(column) == column.null_count else as_targets(column)

    @functools.cached_property
    def status(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """``"ok"``, ``"error"`` or ``"pending"`` for every row."""
        return np.array(self._column("status").to_pylist(), dtype="U7")

    @functools.cached_property
    def errors(self) -> dict[str, str]:
        """What went wrong, by the key of the sample."""
        errors: dict[str, str] = {}
        for block in self.iter_samples():
            failed = block.filter(block["error"].is_valid())
            errors.update(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
        return errors

    def _column(self, name: str) -> Any:
        """One column of the sample table; the others are let go block by block."""
        return pyarrow.concat_tables([block.select([name]) for block in self.iter_samples()])[name]

    @property
    def complete(self) -> bool:
        """Whether every row is finished, be it with an error."""
        return self.summary.pending == 0

    @property
    def summary(self) -> Summary:
        """How many rows are finished, failed and pending."""
        ok, failed, pending = self._counts
        skipped = self.manifest.source.skipped
        return Summary(len(self), ok, failed, pending, skipped, *self._run)

    @functools.cached_property
    def _counts(self) -> tuple[int, int, int]:
        if self._finish is not None:
            return self._finish.ok, self._finish.failed, 0
        counts = Counts()
        for block in self.iter_samples():
            counts.add(block)
        return counts.ok, counts.failed, counts.pending

    def row_numbers(self, positions: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The positions themselves: this is the whole store."""
        return positions

    def __getitem__(self, key: Layer) -> LayerArray:
        return self._arrays[self._find(key).key]

    def __contains__(self, key: object) -> bool:
        try:
            self._find(key)
        except LayerError:
            return False
        return True

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key!r}: {array.shape}" for key, array in self._arrays.items())
        state = "" if self.complete else f", {self.summary.pending} of {len(self)} rows pending"
        return f"FeatureStore({self.uri!r}, {{{shapes}}}{state})"

    def _find(self, key: object) -> LayerRecord:
        if isinstance(key, np.integer):
            key = int(key)
        if isinstance(key, str | int) and not isinstance(key, bool):
            if key in self._records:
                return self._records[key]
            for field in ("level", "head", "name"):
                for record in self._records.values():
                    if getattr(record.info, field) == key:
                        return record
        names = [*map(str, self._records), *(record.info.name for record in self._records.values())]
        raise LayerError(
            f"no layer {key!r} in this store", f"one of {list(self._records)}", repr(key), near_matches(str(key), names)
        )

    def _array(self, store: GuardedStore, record: LayerRecord) -> LayerArray:
        try:
            array = zarr.open_array(store, path=record.array, mode="r", zarr_format=3)
        except Exception as error:  # whatever Zarr makes of a folder that is not what it was
            got = f"{type(error).__name__}: {error}"
            raise StoreDamagedError(f"the array of {record.key!r} is damaged or missing", got=got) from error
        expected = (self.manifest.rows, *record.shape)
        if array.shape != expected or array.dtype != np.dtype(record.dtype):
            raise StoreDamagedError(
                f"the array of {record.key!r} does not fit the manifest",
                f"{expected} of {record.dtype}",
                f"{array.shape} of {array.dtype}",
                remedy="featreg repair STORE",
            )
        return LayerArray(array, record.key, self.uri, self.identity)
