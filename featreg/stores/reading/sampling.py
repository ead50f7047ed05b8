"""Drawing rows at random."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["reservoir"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

DRAWS = 2**20
"""How many rows are drawn for at a time."""


def reservoir(count: int, n: int, seed: int) -> Integers:
    """``n`` of ``count`` row numbers, ascending, each set of them equally likely (Vitter's algorithm R).

    The draws are those of VISSL's ``sample_features``: for the k-th row one number below k from
    ``numpy.random.default_rng(seed)``, which says whose place in the reservoir the row takes, if any.
    """
    chosen = np.arange(min(n, count))
    generator = np.random.default_rng(seed)
    for start in range(n, count, DRAWS):
        rows = np.arange(start, min(start + DRAWS, count))
        drawn = generator.integers(0, rows + 1)
        taken = drawn < n
        chosen[drawn[taken]] = rows[taken]  # of those that draw one number, the last stays
    return np.sort(chosen)
