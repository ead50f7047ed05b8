"""Reading a store."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import attrs
import numpy as np

from featreg.errors import LayerError, StoreError, near_matches
from featreg.extras import data_extra
from featreg.spec import FeatureInfo, Layer
from featreg.stores.array import LayerArray
from featreg.stores.layout import RECEIPTS, SAMPLES, LayerRecord, Manifest, read_manifest, store_path
from featreg.stores.tables import read_samples

with data_extra():
    import zarr

__all__ = ["FeatureStore", "Summary", "open_store"]


def open_store(path: str | os.PathLike[str]) -> FeatureStore:
    """Open the features in a folder, finished or not; no feature is read yet.

    Raises SpecError for what is no path, and StoreError where there is no store, where its documents are damaged, where
    shards of finished rows are missing, or where another version wrote it.
    """
    return FeatureStore(path)


@attrs.frozen
class Summary:
    """How a store stands, in rows; ``skipped`` counts the source's files that are no images and have no row.

    ``seconds`` is the time from the first image to the last receipt, known to the run that wrote the store only.
    """

    rows: int
    ok: int
    failed: int
    pending: int
    skipped: int
    seconds: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Finished rows per second of that run."""
        return None if not self.seconds else (self.ok + self.failed) / self.seconds


class FeatureStore:
    """The features of a data set, row by row in the order of its index.

    ``store["C5"]`` is a lazy :class:`~featreg.stores.LayerArray` of (rows, ...), which is read when it is indexed as in
    NumPy: ``store["C5"][store.status == "ok"]``. A layer is found by the key it was asked for, or by its level, head or
    native name. ``len(store)`` counts rows; a row that failed or is pending holds NaN, and ``status`` tells which.
    """

    __iter__: ClassVar[None] = None  # neither rows nor layers: say store.keys or store.layers

    def __init__(self, path: str | os.PathLike[str], *, seconds: float | None = None) -> None:
        self.path = store_path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._records = {record.key: record for record in self.manifest.layers}
        self._seconds = seconds
        self._arrays = {record.key: self._array(record) for record in self.manifest.layers}
        _check_shards(self.path, self.manifest)

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

    @functools.cached_property
    def keys(self) -> list[str]:
        """The key of every sample, in row order."""
        return list(self._samples["key"].to_pylist())

    @functools.cached_property
    def targets(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """The class of every row, as a place in :attr:`classes`; None where the source has none."""
        column = self._samples["target"]
        return None if column.null_count else column.to_numpy().astype(np.int64)

    @functools.cached_property
    def status(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """``"ok"``, ``"error"`` or ``"pending"`` for every row."""
        return np.array(self._samples["status"].to_pylist(), dtype="U7")

    @functools.cached_property
    def errors(self) -> dict[str, str]:
        """What went wrong, by the key of the sample."""
        failed = self._samples["error"].to_pylist()
        return {key: error for key, error in zip(self.keys, failed, strict=True) if error is not None}

    @property
    def complete(self) -> bool:
        """Whether every row is finished, be it with an error."""
        return "pending" not in self.status

    @property
    def summary(self) -> Summary:
        """How many rows are finished, failed and pending."""
        counts = {name: int((self.status == name).sum()) for name in ("ok", "error", "pending")}
        skipped = self.manifest.source.skipped
        return Summary(len(self), counts["ok"], counts["error"], counts["pending"], skipped, self._seconds)

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
        return f"FeatureStore({str(self.path)!r}, {{{shapes}}}{state})"

    @functools.cached_property
    def _samples(self) -> Any:
        return read_samples(self.path, self.manifest)

    def _find(self, key: object) -> LayerRecord:
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

    def _array(self, record: LayerRecord) -> LayerArray:
        path = self.path / record.array
        try:
            array = zarr.open_array(str(path), mode="r", zarr_format=3)
        except Exception as error:  # whatever Zarr makes of a folder that is not what it was
            got = f"{type(error).__name__}: {error}"
            raise StoreError(f"the array of {record.key!r} is damaged or missing", got=got) from error
        expected = (self.manifest.rows, *record.shape)
        if array.shape != expected or array.dtype != np.dtype(record.dtype):
            raise StoreError(
                f"the array of {record.key!r} does not fit the manifest",
                f"{expected} of {record.dtype}",
                f"{array.shape} of {array.dtype}",
            )
        return LayerArray(array, record.key, self.path)


def _check_shards(root: Path, manifest: Manifest) -> None:
    """Raise StoreError where a shard of a finished task is gone or empty: Zarr would read it as NaN, without a word."""
    receipts = None if (root / SAMPLES).exists() else set(_names(root / RECEIPTS))
    lost = [
        (layer, task)
        for task in manifest.iter_tasks()
        if receipts is None or Path(task.receipt).name in receipts
        for layer in manifest.layers
        if not _has_content(f"{root}/{layer.shard(task)}")
    ]
    if lost:
        layer, task = lost[0]
        raise StoreError(
            f"{len(lost)} shard files of the store {str(root)!r} are missing or empty",
            f"{layer.shard(task)!r}, rows {task.start} to {task.stop - 1} of {layer.key!r}",
            "nothing there",
            remedy="extract again with overwrite=True (--overwrite)",
        )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise StoreError(f"{str(folder)!r} is damaged or missing", got=f"{type(error).__name__}: {error}") from error


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False
