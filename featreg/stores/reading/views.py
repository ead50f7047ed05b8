"""Some rows of a store, as if they were a store."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from featreg.errors import SpecError, near_matches
from featreg.spec import FeatureInfo, Layer
from featreg.stores.reading.array import LayerArray
from featreg.stores.reading.records import has_status, select
from featreg.stores.reading.rows import Rows

__all__ = ["LayerView", "StoreView", "view_of"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Values: TypeAlias = np.ndarray[Any, Any]

STATUSES = ("ok", "error", "pending")

DENSE = 2
"""Rows are read with all that lie between them as long as these are fewer than so many times their number."""


def view_of(rows: Rows, selected: Any, status: str | None, layers: Layer | Sequence[Layer] | None = None) -> StoreView:
    """The view behind :meth:`featreg.stores.reading.rows.Rows.where`."""
    chosen = np.zeros(len(rows), bool)
    chosen[... if selected is None else _positions(selected)] = True
    if status is not None:
        if status not in STATUSES:
            raise SpecError(
                f"there is no status {status!r}",
                f"one of {STATUSES}",
                repr(status),
                near_matches(str(status), STATUSES),
            )
        chosen &= has_status(rows, status, layers)
    return StoreView(rows, np.flatnonzero(chosen))


def _positions(selected: Any) -> Values:
    """What NumPy takes as an index of rows: a mask or positions, also where there are none."""
    found = np.asarray(selected)
    single = found.dtype == bool and not found.ndim  # what comparing None with a number gives
    if single or (found.dtype != bool and found.dtype.kind not in "iu" and found.size) or found.ndim > 1:
        raise SpecError(
            "rows are selected by a mask or by positions",
            "booleans or whole numbers along one axis",
            f"{found.dtype} of {found.shape}",
            remedy="store.targets is None where no row has a target: no mask comes of it" if single else "",
        )
    return found if found.dtype == bool else found.astype(np.int64)


class StoreView(Rows):
    """Some rows of a store in its order, with the attributes and the methods of :class:`~featreg.FeatureStore`.

    ``base`` is what it is a view of, ``rows`` holds the numbers that the rows have in the store.
    """

    __iter__: ClassVar[None] = None

    def __init__(self, base: Rows, positions: Integers) -> None:
        self.base = base
        self.manifest = base.manifest
        self.identity = base.identity
        self._positions = positions

    @property
    def path(self) -> Path:
        return self.base.path

    @property
    def uri(self) -> str:
        return self.base.uri

    @functools.cached_property
    def rows(self) -> Integers:
        """The number that each row has in the store."""
        return self.base.row_numbers(self._positions)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.base.layers

    @property
    def info(self) -> Mapping[Layer, FeatureInfo]:
        return self.base.info

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.base.classes

    @functools.cached_property
    def keys(self) -> list[str]:
        keys = self.base.keys
        return [keys[position] for position in self._positions]

    @functools.cached_property
    def targets(self) -> Integers | None:
        targets = self.base.targets
        return None if targets is None else targets[self._positions]

    @functools.cached_property
    def status(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        return self.base.status[self._positions]

    @functools.cached_property
    def errors(self) -> dict[str, str]:
        errors = self.base.errors
        return {key: errors[key] for key in self.keys if key in errors}

    @functools.cached_property
    def complete(self) -> bool:
        return self.base.complete or not has_status(self, "pending").any()

    def iter_samples(self, layers: Layer | Sequence[Layer] | None = None) -> Iterator[Any]:
        return select(self.base.iter_samples(layers), self._positions)

    def row_numbers(self, positions: Integers) -> Integers:
        return self.rows[positions]

    def __getitem__(self, key: Layer) -> LayerView:
        found = self.base[key]
        if isinstance(found, LayerView):
            return LayerView(found.layer, found.rows[self._positions])
        return LayerView(found, self._positions)

    def __contains__(self, key: object) -> bool:
        return key in self.base

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"StoreView({len(self)} of {self.manifest.rows} rows of {self.uri!r})"


class LayerView:
    """Some rows of a layer, indexed as in NumPy; only what an index selects is read, and ``numpy.asarray`` reads all.

    ``layer`` is the whole layer, ``rows`` holds the numbers of the rows in it, ascending.
    """

    def __init__(self, layer: LayerArray, rows: Integers) -> None:
        self.layer = layer
        self.rows = rows

    @property
    def key(self) -> Layer:
        """The key of the layer, as it was asked for."""
        return self.layer.key

    @property
    def array(self) -> Any:
        """The Zarr array with all rows."""
        return self.layer.array

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, ...)."""
        return (len(self.rows), *self.layer.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""
        return self.layer.dtype

    @property
    def ndim(self) -> int:
        """The number of axes, the rows included."""
        return self.layer.ndim

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of the chunks within a shard of the whole layer."""
        return self.layer.chunks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        first = parts[0] if parts else slice(None)
        if isinstance(first, slice):
            return self._read(self.rows[first])[(slice(None), *parts[1:])]
        if first is None or first is Ellipsis or (np.asarray(first).dtype == bool and np.ndim(first) != 1):
            return self._read(self.rows)[index]
        return self.layer[(self.rows[first], *parts[1:])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Values:
        if copy is False:
            raise ValueError("the rows of a store are read from disk and cannot be given without a copy")
        values = self._read(self.rows)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"LayerView({len(self)} rows of {self.layer!r})"

    def _read(self, rows: Integers) -> Values:
        """The rows, in one piece where few others lie between them."""
        if not len(rows):
            return np.asarray(self.layer[0:0])
        first, last = int(rows.min()), int(rows.max())
        if last - first >= DENSE * len(rows):
            return np.asarray(self.layer[rows])
        return np.asarray(self.layer[first : last + 1][rows - first])
