"""Sums over rows that are taken block by block, in any order, and joined."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.extras import extra

__all__ = ["Mean", "Moments"]

Doubles: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@attrs.define(eq=False)
class Mean:
    """The number of rows and their mean, (columns,), in float64."""

    width: int
    count: int = 0
    mean: Doubles = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.mean = np.zeros(self.width)

    def update(self, rows: Doubles) -> None:
        """Take a block of finite rows, (rows, columns), in."""
        if len(rows):
            self._join(len(rows), rows.mean(axis=0))

    def merge(self, other: Mean) -> None:
        """Take in what another has seen."""
        if other.count:
            self._join(other.count, other.mean)

    def _join(self, count: int, mean: Doubles) -> None:
        self.count += count
        self.mean += (mean - self.mean) * (count / self.count)


@attrs.define(eq=False)
class Moments:
    """The number of rows, their mean, and the sums of the products of their deviations from it, all in float64.

    Blocks are centred on their own means before they are multiplied, and joined as Chan, Golub and LeVeque (1983,
    doi:10.1080/00031305.1983.10483115) join them, so that a large mean costs no digits. Any split of the rows into
    blocks and any order of the merges gives the same but for rounding. ``scatter`` is (columns, columns); only its
    upper triangle is kept up.
    """

    width: int
    count: int = 0
    mean: Doubles = attrs.field(init=False)
    scatter: Doubles = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.mean = np.zeros(self.width)
        self.scatter = np.zeros((self.width, self.width), order="F")

    def update(self, rows: Doubles) -> None:
        """Take a block of finite rows, (rows, columns), in; the block is used up."""
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        rows -= mean
        self._add_products(rows)
        self._join(len(rows), mean)

    def merge(self, other: Moments) -> None:
        """Take in what another has seen."""
        if other.count:
            self.scatter += other.scatter
            self._join(other.count, other.mean)

    def _join(self, count: int, mean: Doubles) -> None:
        """Move the mean; what lies between the two means adds to the products."""
        between = mean - self.mean
        total = self.count + count
        if self.count:
            self._add_products(np.sqrt(self.count / total * count) * between[None])
        self.mean += between * (count / total)
        self.count = total

    def _add_products(self, rows: Doubles) -> None:
        """Add rows.T @ rows to the upper triangle, in place."""
        with extra("derive", "principal components"):
            from scipy.linalg.blas import dsyrk
        self.scatter = dsyrk(1.0, rows.T, beta=1.0, c=self.scatter, overwrite_c=True)
