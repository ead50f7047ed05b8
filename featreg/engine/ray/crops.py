"""The samples of one task as a row of an Arrow table: what goes from the tasks that decode to those that extract.

The crops lie in one buffer, which Ray shares between the processes of a machine without a copy.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from featreg.engine.loop.loader import Loaded
from featreg.engine.monitoring.stages import Stage
from featreg.engine.ray.outcomes import Raised
from featreg.extras import data_extra

with data_extra():
    import pyarrow

pa: Any = pyarrow  # a compiled module without types

__all__ = ["Decoded", "decoded_rows", "pack"]

SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("rows", pa.int64()),
        ("shape", pa.list_(pa.int64())),
        ("crops", pa.large_binary()),
        ("rest", pa.binary()),
    ]
)


@attrs.frozen
class Decoded:
    """The samples of the task with a number, in order, or what stopped their reading; and what time that took."""

    number: int
    samples: Sequence[Loaded] | Raised
    seconds: Mapping[Stage, float] = attrs.field(factory=dict)


def pack(decoded: Decoded) -> Any:
    """A table of one row; what is no crop (texts, errors) is pickled beside the crops."""
    if isinstance(decoded.samples, Raised):
        return _table(decoded, np.empty((0, 0, 0, 0), np.uint8), decoded.samples)
    rest = {place: sample for place, sample in enumerate(decoded.samples) if not isinstance(sample, np.ndarray)}
    crops = [sample for sample in decoded.samples if isinstance(sample, np.ndarray)]
    stacked = np.stack(crops) if crops else np.empty((0, 0, 0, 0), np.uint8)
    return _table(decoded, stacked, rest)


def decoded_rows(table: Any) -> list[Decoded]:
    """What :func:`pack` packed, of every row; the crops (h, w, 3) are read-only and lie in the table's own memory."""
    columns = (table[name] for name in SCHEMA.names)
    return [_unpack(*row) for row in zip(*columns, strict=True)]


def _table(decoded: Decoded, crops: np.ndarray[Any, np.dtype[np.uint8]], rest: Any) -> Any:
    data = pa.py_buffer(np.ascontiguousarray(crops))
    offsets = pa.py_buffer(np.array([0, crops.nbytes], np.int64))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])
    rows = 0 if isinstance(rest, Raised) else len(crops) + len(rest)
    pickled = pickle.dumps((rest, dict(decoded.seconds)))
    return pa.table([[decoded.number], [rows], [list(crops.shape)], column, [pickled]], schema=SCHEMA)


def _unpack(number: Any, rows: Any, shape: Any, crops: Any, rest: Any) -> Decoded:
    others, seconds = pickle.loads(rest.as_py())
    if isinstance(others, Raised):
        return Decoded(number.as_py(), others, seconds)
    pixels = iter(np.frombuffer(crops.as_buffer(), np.uint8).reshape(shape.as_py()))
    places = range(rows.as_py())
    samples = [others[place] if place in others else next(pixels) for place in places]
    return Decoded(number.as_py(), samples, seconds)
