"""Random matrices that follow from a seed, made block by block."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np

from featreg.derived.blocks import philox
from featreg.errors import RequestError
from featreg.extras import extra
from featreg.steps import RandomProjection

__all__ = ["check_projection", "project", "projection_block"]

Doubles: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

BLOCK_WORDS = 2**20
"""The words that make the entries of one block of the matrix."""

HELD_BYTES = 2**28
"""What a matrix may weigh that is kept from call to call; a larger one is made anew in every call."""

_LEVELS = 2**16
_GRID = 2**20
_SPARSE_RANGE = 2**31


def check_projection(step: RandomProjection, width: int) -> None:
    """Raise RequestError for a projection to more columns than there are."""
    if step.components > width:
        raise RequestError(
            f"a projection to {step.components} columns from {width}",
            f"at most {width} components",
            str(step.components),
        )


def project(rows: Doubles, step: RandomProjection) -> Doubles:
    """(rows, columns) times the matrix of the step, (rows, components), in float64."""
    projected = np.zeros((len(rows), step.components))
    start = 0
    for block in _blocks(step, rows.shape[1]):
        stop = start + block.shape[0]
        projected += rows[:, start:stop] @ block.astype(np.float64)
        start = stop
    projected *= _scale(step, rows.shape[1])
    return projected


def projection_block(step: RandomProjection, start: int, stop: int, width: int) -> Doubles:
    """The rows from ``start`` to ``stop`` of the matrix, (stop - start, components).

    The entries follow from seed, distribution, density, number of components and place alone. They are made of Philox'
    words by whole-number arithmetic and one product, and are the same to the bit on every machine: Gaussian ones are
    taken from a table of 65,536 quantiles by 16 bits of a word each, sparse ones from 32 bits each.
    """
    block: Doubles = _entries(step, start, stop, width).astype(np.float64)
    block *= _scale(step, width)
    return block


def _blocks(step: RandomProjection, width: int) -> Iterator[Any]:
    size = width * step.components * 4 * (_density(step, width) * 2 if step.distribution == "sparse" else 1)
    return iter(_held_blocks(step, width) if size <= HELD_BYTES else _made_blocks(step, width))


@functools.lru_cache(maxsize=2)
def _held_blocks(step: RandomProjection, width: int) -> tuple[Any, ...]:
    return tuple(_made_blocks(step, width))


def _made_blocks(step: RandomProjection, width: int) -> Iterator[Any]:
    """The unscaled matrix in blocks of rows: of NumPy, or in SciPy's compressed form where it is sparse."""
    rows = max(1, BLOCK_WORDS // _row_words(step))
    bounds = [*range(0, width, rows), width]
    for start, stop in itertools.pairwise(bounds):
        entries = _entries(step, start, stop, width)
        yield _compressed(entries) if step.distribution == "sparse" else entries


def _compressed(entries: Any) -> Any:
    with extra("derive", "sparse projections"):
        from scipy.sparse import csr_array
    return csr_array(entries)


def _row_words(step: RandomProjection) -> int:
    """The 64-bit words of a row of the matrix, a multiple of the four that one count of Philox gives."""
    entries = 2 if step.distribution == "sparse" else 4
    return 4 * math.ceil(step.components / entries / 4)


def _entries(step: RandomProjection, start: int, stop: int, width: int) -> Any:
    """Entries before scaling: float32 of variance 1, or -1, 0 and 1."""
    per_row = _row_words(step)
    generator = philox(step.seed, step.distribution)
    generator.advance(start * per_row // 4)
    words = generator.random_raw((stop - start) * per_row).astype("<u8").reshape(stop - start, per_row)
    if step.distribution == "gaussian":
        return _quantiles()[words.view("<u2")[:, : step.components]]
    halves = words.view("<u4")[:, : step.components]
    signs = (halves & 1).astype(np.int8) * np.int8(2) - np.int8(1)
    return np.where(halves >> 1 < _threshold(step, width), signs, np.int8(0))


@functools.cache
def _quantiles() -> np.ndarray[Any, np.dtype[np.float32]]:
    """The standard normal distribution in 65,536 equally likely values of variance 1, multiples of 2**-20.

    The grid is far coarser than what libraries of mathematics differ by, and exact in float32.
    """
    normal = NormalDist()
    upper = np.array([normal.inv_cdf((level + 0.5) / _LEVELS) for level in range(_LEVELS // 2, _LEVELS)])
    upper /= np.sqrt((upper**2).mean())
    upper = np.round(upper * _GRID) / _GRID
    table: np.ndarray[Any, np.dtype[np.float32]] = np.concatenate([-upper[::-1], upper]).astype(np.float32)
    return table


def _density(step: RandomProjection, width: int) -> float:
    return 1 / math.sqrt(width) if step.density is None else step.density


def _threshold(step: RandomProjection, width: int) -> int:
    """How many of the 2**31 numbers stand for an entry that is not 0."""
    return max(1, round(_density(step, width) * _SPARSE_RANGE))


def _scale(step: RandomProjection, width: int) -> float:
    """What makes the variance of an entry 1 / components."""
    share = _threshold(step, width) / _SPARSE_RANGE if step.distribution == "sparse" else 1.0
    return 1 / math.sqrt(share * step.components)
