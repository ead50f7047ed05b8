"""Streams of pyarrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featreg.extras import data_extra

if TYPE_CHECKING:
    from featreg.spec import Layer
    from featreg.stores.reading.rows import Rows

with data_extra():
    import pyarrow
    import pyarrow.compute

pa: Any = pyarrow  # a compiled module without types

__all__ = ["NO_TARGET", "as_targets", "evenly", "has_status", "select"]

NO_TARGET = -1
"""Stands in an array of targets where a row has none."""


def as_targets(column: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A column of targets as int64, with :data:`NO_TARGET` where a row has none."""
    filled: np.ndarray[Any, np.dtype[np.int64]] = pa.compute.fill_null(column, NO_TARGET).to_numpy()
    return filled.astype(np.int64)


def has_status(
    rows: Rows, status: str, layers: Layer | Sequence[Layer] | None = None
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each row has a status in some layers, or in all, from one block of the sample table at a time."""
    found = [pa.compute.equal(block["status"], status).to_numpy() for block in rows.iter_samples(layers)]
    return np.concatenate([np.zeros(0, bool), *found])


def select(tables: Iterable[Any], positions: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Any]:
    """The rows at ascending positions of the whole that the tables make up."""
    start = 0
    for table in tables:
        stop = start + table.num_rows
        first, last = np.searchsorted(positions, [start, stop])
        yield table.take(pa.array(positions[first:last] - start))
        start = stop


def evenly(tables: Iterable[Any], size: int) -> Iterator[Any]:
    """The same rows in tables of ``size`` rows; the last may have fewer."""
    waiting: list[Any] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        while held >= size:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, size)
            waiting, held = [joined.slice(size)], held - size
    if held:
        yield pa.concat_tables(waiting)
