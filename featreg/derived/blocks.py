"""Rows, a block at a time: how many at once, and which of them make a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from featreg.errors import SpecError

__all__ = ["BLOCK_BYTES", "Floats", "philox", "row_slices", "sample_rows"]

Floats: TypeAlias = np.ndarray[Any, Any]

BLOCK_BYTES = 2**26
"""What the float64 rows that are worked on at once may weigh, where a single row does not weigh more."""


def row_slices(rows: int, width: int) -> Iterator[slice]:
    """The rows from 0 on in blocks of at most :data:`BLOCK_BYTES` of float64, at least one row each."""
    step = max(1, BLOCK_BYTES // (8 * max(1, width)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def philox(seed: int, purpose: str) -> np.random.Philox:
    """The counter-based generator (Salmon et al. 2011, doi:10.1145/2063384.2063405) of a seed for one purpose.

    Only its words are used: these are the same in every version of NumPy and on every machine.
    """
    tag = int.from_bytes(purpose.encode()[:8].ljust(8, b"\0"), "little")
    return np.random.Philox(key=np.array([seed, tag], dtype=np.uint64))


def sample_rows(count: int, size: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``size`` of the row numbers from 0 to ``count - 1``, ascending, all of them where there are no more.

    Every subset is as likely as any other (Floyd's algorithm, in Bentley 1987, doi:10.1145/30401.315746). The numbers
    follow from count, size and seed alone: not from shards, workers, the machine or the version of NumPy. Raises
    SpecError for numbers out of range.
    """
    if count < 0 or size < 1 or not 0 <= seed < 2**64:
        raise SpecError(
            "no such sample of rows", "at least one row, a seed from 0 to 2**64 - 1", f"{size} of {count}, seed {seed}"
        )
    if size >= count:
        return np.arange(count, dtype=np.int64)
    chosen: set[int] = set()
    words = philox(seed, "rows").random_raw(size).tolist()
    for last, word in zip(range(count - size, count), words, strict=True):
        drawn = word * (last + 1) >> 64
        chosen.add(last if drawn in chosen else drawn)
    return np.array(sorted(chosen), dtype=np.int64)
