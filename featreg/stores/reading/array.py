"""One layer of a store, read as it is indexed."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from featreg.errors import FeatregError, StoreError
from featreg.extras import data_extra
from featreg.spec import Layer
from featreg.stores.reading.identity import Identity

with data_extra():
    import zarr

__all__ = ["LayerArray"]

Values: TypeAlias = np.ndarray[Any, Any]


class LayerArray:
    """The features of one layer, (rows, ...), which stay on disk until they are indexed.

    Any index means what it means in NumPy: numbers, slices, masks and lists of rows, alone or with further axes.
    Only the rows that an index selects are read, and ``numpy.asarray`` reads all. ``array`` is the Zarr array behind.

    Indexing raises IndexError for what is out of range, and StoreError where the rows cannot be read, or where the path
    holds another store by now.
    """

    def __init__(self, array: zarr.Array[Any], layer: Layer, uri: str, identity: Identity) -> None:
        self.array = array
        self._layer = layer
        self._uri = uri
        self._identity = identity

    @property
    def key(self) -> Layer:
        """The key of the layer, as it was asked for."""
        return self._layer

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, ...)."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""
        return np.dtype(self.array.dtype)

    @property
    def ndim(self) -> int:
        """The number of axes, the rows included."""
        return self.array.ndim

    @property
    def chunks(self) -> tuple[int, ...]:
        """What one read costs at least: the shape of the chunks within a shard."""
        return self.array.chunks

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if all(map(_is_basic, parts)):
            return self._read(parts)[()]
        rows, within = _select(parts[0], len(self))
        return self._read((rows,))[(within, *parts[1:])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Values:
        if copy is False:
            raise ValueError("the rows of a store are read from disk and cannot be given without a copy")
        values = self._read((...,))
        return values if dtype is None else values.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"LayerArray({self._layer!r}, shape={self.shape}, dtype={self.dtype})"

    def _read(self, parts: tuple[Any, ...]) -> Values:
        """What a plain index, or an ascending array of rows, selects."""
        listed = bool(parts) and isinstance(parts[0], np.ndarray)
        try:
            values = np.asarray(self.array.oindex[parts] if listed else self.array[parts])
        except (IndexError, MemoryError):
            raise
        except Exception as error:  # Zarr raises whatever its codecs and the file system do
            self._identity.check()
            if isinstance(error, FeatregError):
                raise
            raise StoreError(
                f"{self._rows_of(parts)} of {self._layer!r} cannot be read from {self._uri!r}",
                "shards as they were written",
                f"{type(error).__name__}: {error}",
                remedy="featreg repair STORE, then featreg worker STORE",
            ) from error
        self._identity.check()  # after reading: whatever was read before is of the store that was opened
        return values

    def _rows_of(self, parts: tuple[Any, ...]) -> str:
        rows = np.arange(len(self))[parts[0] if parts else ...]
        return f"row {rows}" if rows.ndim == 0 else f"{rows.size} rows from {rows.min()} to {rows.max()}"


def _is_number(part: object) -> bool:
    return isinstance(part, int | np.integer) and not isinstance(part, bool)


def _is_basic(part: object) -> bool:
    """Whether Zarr indexes as NumPy does: by numbers, the ellipsis and ascending slices."""
    if isinstance(part, slice):
        return part.indices(1)[2] > 0  # raises what NumPy raises for a slice that is none
    return part is Ellipsis or _is_number(part)


def _select(part: Any, count: int) -> tuple[Any, Any]:
    """The rows to read, ascending, and the index into these that gives what ``part`` gives of all ``count`` rows."""
    if isinstance(part, slice):
        numbers = range(count)[part]
        if not numbers:
            return slice(0, 0), slice(None)
        if numbers.step > 0:
            return part, slice(None)
        return slice(numbers[-1], numbers[0] + 1, -numbers.step), slice(None, None, -1)
    if part is None or part is Ellipsis:
        return slice(None), part
    wanted = np.asarray(part)
    if wanted.dtype == bool and wanted.ndim != 1:  # a mask over several axes
        return slice(None), part
    rows, within = np.unique(_row_numbers(wanted, count), return_inverse=True)
    return rows, within.reshape(-1 if wanted.dtype == bool else wanted.shape)


def _row_numbers(wanted: Values, count: int) -> Values:
    """A mask or numbers, negative ones too, as numbers from 0; raises IndexError."""
    if wanted.dtype == bool:
        if len(wanted) != count:
            raise IndexError(f"the mask has {len(wanted)} entries, the layer has {count} rows")
        return np.flatnonzero(wanted)
    if wanted.size and wanted.dtype.kind not in "iu":
        raise IndexError(f"rows are selected by integers, slices and masks, not by {wanted.dtype}")
    numbers = wanted.astype(np.int64)
    outside = numbers[(numbers < -count) | (numbers >= count)]
    if outside.size:
        raise IndexError(f"row {outside.flat[0]} is out of range: the layer has {count} rows")
    return np.where(numbers < 0, numbers + count, numbers)
