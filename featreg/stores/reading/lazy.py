"""Rows as a lazy xarray dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from featreg.errors import SpecError
from featreg.extras import extra
from featreg.stores.reading.array import LayerArray
from featreg.stores.reading.npy import array_name
from featreg.stores.reading.rows import Rows
from featreg.stores.reading.views import LayerView

with extra("xarray", "xarray datasets"):
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing

__all__ = ["dataset"]


def dataset(rows: Rows) -> xarray.Dataset:
    """The dataset behind :meth:`featreg.stores.reading.rows.Rows.to_xarray`.

    Variables and axes have the names that plain xarray finds in the store.
    """
    variables = {array_name(rows, layer): _variable(rows, layer) for layer in rows.layers}
    coordinates: dict[str, Any] = {
        "row": rows.row_numbers(np.arange(len(rows))),
        "key": ("row", np.array(rows.keys, dtype=object)),  # as wide as the longest one, all of them would be
        "status": ("row", rows.status),
    }
    if rows.targets is not None:
        coordinates["target"] = ("row", rows.targets)
    taken = sorted(coordinates.keys() & variables.keys())
    if taken:
        raise SpecError(f"layers are called as coordinates are: {taken}", "other names", remedy="memmap, or batches")
    request = rows.manifest.request
    return xarray.Dataset(variables, coordinates, {"model": request.model, "weights": str(request.weights)})


def _variable(rows: Rows, layer: Any) -> xarray.Variable:
    info, array = rows.info[layer], rows[layer]
    metadata: Any = array.array.metadata
    names = tuple(map(str, metadata.dimension_names))
    return xarray.Variable(names, indexing.LazilyIndexedArray(_Backend(array)), {"layer": info.name})


class _Backend(BackendArray):
    """A layer as xarray's machinery for lazy arrays wants it."""

    def __init__(self, array: LayerArray | LayerView) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        """What the axes select one by one: rows as they are read, the others of these rows."""
        values = self.array[key[0]]
        kept = np.ndim(values) - len(key) + 1  # 0 where one row was selected
        for axis in reversed(range(1, len(key))):
            values = values[(*(slice(None),) * (axis - 1 + kept), key[axis])]
        return values
