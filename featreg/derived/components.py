"""Principal components of rows that come block by block."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.derived.moments import Moments
from featreg.errors import RequestError
from featreg.extras import extra
from featreg.steps import PCA

__all__ = ["MAX_EXACT", "Components", "ExactFit", "IncrementalFit", "components_fit", "components_bytes"]

Doubles: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

MAX_EXACT = 8192
"""The most columns whose covariance is held, 512 MiB of float64 then; beyond, components are found incrementally."""


@attrs.frozen(eq=False)
class Components:
    """What PCA has learnt, in float64.

    ``mean`` (columns,); ``components`` (k, columns), of unit length and at right angles; ``variances`` (k,), of the
    fitted rows along each of them, and ``total_variance`` over all columns, with the divisor n - 1; ``whiten`` as in
    :class:`~featreg.steps.PCA`.
    """

    mean: Doubles
    components: Doubles
    variances: Doubles
    total_variance: float
    whiten: bool

    @property
    def width(self) -> int:
        """The number of components."""
        return len(self.components)

    def apply(self, rows: Doubles) -> Doubles:
        """The coordinates (rows, k) of (rows, columns); the block is used up."""
        rows -= self.mean
        coordinates: Doubles = rows @ self.components.T
        return coordinates * self._scale() if self.whiten else coordinates

    def _scale(self) -> Doubles:
        """One over each deviation; 0 for a variance that is but the rounding of the largest."""
        rounding = self.variances.max() * self.components.shape[1] * np.finfo(np.float64).eps
        real = self.variances > rounding
        return np.where(real, 1 / np.sqrt(np.where(real, self.variances, 1)), 0)


class ExactFit:
    """Components from the covariance of all rows that were seen: exact but for rounding, whatever the blocks.

    Any number of fits can see a part of the rows each and be merged. The variances are exact to the rounding of the
    largest (what is 1e-16 of it is lost), as with scikit-learn's ``svd_solver="covariance_eigh"``.
    """

    def __init__(self, step: PCA, width: int) -> None:
        self._step = step
        self._moments = Moments(width)

    def update(self, rows: Doubles) -> None:
        """Take a block of finite rows in; the block is used up."""
        self._moments.update(rows)

    def merge(self, other: ExactFit) -> None:
        """Take in what another fit has seen."""
        self._moments.merge(other._moments)

    def finish(self) -> Components:
        """The components, once; raises RequestError for too few rows, and where there is no variance to share."""
        moments = self._moments
        _check_rows(self._step, moments.count, moments.width)
        degrees = moments.count - 1
        total = float(np.trace(moments.scatter))
        count = self._step.components or _enough(self._step, moments.scatter, total, moments.count)
        with extra("derive", "principal components"):
            from scipy.linalg import eigh
        last = moments.width - 1
        sums, vectors = eigh(
            moments.scatter,
            lower=False,
            subset_by_index=(last - count + 1, last),
            overwrite_a=True,  # a second matrix of this size would double what a fit needs
            check_finite=False,
        )
        variances = np.maximum(sums[::-1], 0) / degrees
        return Components(moments.mean, _signed(vectors.T[::-1]), variances, total / degrees, self._step.whiten)


class IncrementalFit:
    """Components of wide rows with scikit-learn's ``IncrementalPCA`` (Ross et al. 2008, doi:10.1007/s11263-007-0075-7).

    Rows are gathered into batches of at least twice the number of components, so that the blocks in which they come do
    not count; their order does, and two fits cannot be merged. Exact for fewer rows than two batches have. A share of
    the variance cannot be asked for: what is dropped on the way is not known again.
    """

    def __init__(self, step: PCA, width: int) -> None:
        if step.components is None:
            raise RequestError(
                f"a share of the variance of {width} columns",
                f"at most {MAX_EXACT} columns",
                str(step),
                remedy=f"pca=COUNT, or project={MAX_EXACT} or a pooling before it",
            )
        with extra("derive", "principal components"):
            from sklearn.decomposition import IncrementalPCA
        self._step, self._width, self._count = step, width, 0
        self._batch = batch_rows(step.components)
        self._rows = np.empty((2 * self._batch, width))
        self._held = 0
        self._pca: Any = IncrementalPCA(step.components, copy=False)

    def update(self, rows: Doubles) -> None:
        """Take a block of finite rows in."""
        self._count += len(rows)
        while len(rows):
            taken = rows[: len(self._rows) - self._held]
            self._rows[self._held : self._held + len(taken)] = taken
            self._held += len(taken)
            rows = rows[len(taken) :]
            if self._held == len(self._rows):  # so that what remains at the end is never less than a batch
                self._see(self._batch)

    def finish(self) -> Components:
        """The components, once; raises RequestError for too few rows."""
        _check_rows(self._step, self._count, self._width)
        self._see(self._held)
        total = float(np.sum(self._pca.var_) * (self._count / (self._count - 1)))
        components = _signed(self._pca.components_)
        return Components(self._pca.mean_, components, self._pca.explained_variance_, total, self._step.whiten)

    def _see(self, count: int) -> None:
        """Fit the first of the rows that are held, which are used up."""
        with np.errstate(invalid="ignore", divide="ignore"):  # the shares of no variance, which are not used
            self._pca.partial_fit(self._rows[:count])
        self._held -= count
        self._rows[: self._held] = self._rows[count : count + self._held]


def batch_rows(components: int) -> int:
    """The rows of a batch of an incremental fit."""
    return max(2 * components, 128)


def components_bytes(step: PCA, width: int) -> int:
    """About what a fit of so many columns holds in memory at most, besides the block that it is given."""
    if width <= MAX_EXACT:
        vectors = 2 * width * (step.components or width)
        return 8 * (width**2 * (1 if step.components else 2) + vectors)
    batch = batch_rows(step.components or 0)
    return 8 * width * (2 * batch + 4 * (2 * batch + (step.components or 0)))


def components_fit(step: PCA, width: int) -> ExactFit | IncrementalFit:
    """What fits the components of rows with so many columns; raises RequestError for more components than columns."""
    if step.components is not None and step.components > width:
        raise RequestError(
            f"{step.components} principal components of {width} columns", f"at most {width}", str(step.components)
        )
    return ExactFit(step, width) if width <= MAX_EXACT else IncrementalFit(step, width)


def _check_rows(step: PCA, count: int, width: int) -> None:
    least = max(2, step.components or 0)
    if count < least:
        raise RequestError(
            f"{step} of {width} columns cannot be fitted",
            f"at least {least} rows with finite values",
            str(count),
            remedy="fewer components, more rows, or a recipe that was fitted on another store",
        )


def _enough(step: PCA, scatter: Doubles, total: float, rows: int) -> int:
    """The fewest components that hold more than the share; as scikit-learn counts, no more than rows and columns."""
    assert step.variance is not None
    if total <= 0:
        raise RequestError("the rows do not vary", "a variance to take a share of", "equal rows", remedy="pca=COUNT")
    with extra("derive", "principal components"):
        from scipy.linalg import eigvalsh
    shares = np.cumsum(np.maximum(eigvalsh(scatter, lower=False, check_finite=False)[::-1], 0)) / total
    return min(int(np.searchsorted(shares, step.variance, side="right")) + 1, rows, len(scatter))


def _signed(components: Doubles) -> Doubles:
    """Each component with the sign that makes its entry of largest absolute value positive, the first of equal ones."""
    largest = np.abs(components).argmax(axis=1)
    signs = np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
    signed: Doubles = np.ascontiguousarray(components * signs[:, None])
    return signed
