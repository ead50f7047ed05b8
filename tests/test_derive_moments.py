"""Means and moments: the same, to rounding, for any split of the rows into blocks and any order of the merges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg.derived.moments import Mean, Moments


def rows_with_offset(count: int, width: int, offset: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)) + offset


def covariance(moments: Moments) -> np.ndarray:
    upper = np.triu(moments.scatter) / (moments.count - 1)
    return upper + np.triu(upper, 1).T


@st.composite
def splits(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows, and the same rows in blocks, empty ones among them, in another order."""
    count, width = draw(st.integers(1, 60)), draw(st.integers(1, 7))
    rows = rows_with_offset(count, width, draw(st.sampled_from([0.0, 1e6])), draw(st.integers(0, 99)))
    bounds = sorted(draw(st.lists(st.integers(0, count), max_size=6)))
    return rows, draw(st.permutations(np.split(rows, bounds)))


def merged(parts: list, order: st.DataObject):
    """Two at a time, in an order that is drawn, until one is left."""
    while len(parts) > 1:
        first, second = (parts.pop(order.draw(st.integers(0, len(parts) - 1))) for _ in range(2))
        first.merge(second)
        parts.append(first)
    return parts[0]


@given(splits(), st.data())
def test_moments_do_not_depend_on_blocks_and_merges(split, order: st.DataObject) -> None:
    rows, blocks = split
    parts = [Moments(rows.shape[1]) for _ in blocks]
    for part, block in zip(parts, blocks, strict=True):
        part.update(block.copy())
    moments = merged(parts, order)
    centered = rows - rows.mean(axis=0)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    scale = (
        max(1.0, abs(rows).max()) * 1e-15 * len(rows)
    )  # of a mean's rounding, which is all that a large offset costs
    np.testing.assert_allclose(np.triu(moments.scatter), np.triu(centered.T @ centered), rtol=1e-10, atol=1e-10 + scale)


@given(splits(), st.data())
def test_means_do_not_depend_on_blocks_and_merges(split, order: st.DataObject) -> None:
    rows, blocks = split
    parts = [Mean(rows.shape[1]) for _ in blocks]
    for part, block in zip(parts, blocks, strict=True):
        part.update(block)
    mean = merged(parts, order)
    assert mean.count == len(rows)
    np.testing.assert_allclose(mean.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)


@given(splits())
def test_blocks_one_after_the_other_are_as_good(split) -> None:
    rows, blocks = split
    moments = Moments(rows.shape[1])
    for block in blocks:
        moments.update(block.copy())
    if len(rows) > 1:
        np.testing.assert_allclose(
            covariance(moments), np.cov(rows.T).reshape(2 * (rows.shape[1],)), rtol=1e-6, atol=1e-9
        )


def test_a_large_offset_costs_no_more_than_the_rounding_of_the_mean() -> None:
    """1e9 is rounded to 1e-7; sums of squares less the square of the sum would be wrong by 1e2."""
    rows = rows_with_offset(1000, 5, 1e9, 1)
    moments = Moments(5)
    for block in np.array_split(rows, 13):
        moments.update(block.copy())
    centered = rows - rows[0]  # exact
    np.testing.assert_allclose(covariance(moments), np.cov(centered.T), rtol=0, atol=1e-7)


def test_the_scatter_is_summed_in_place() -> None:
    moments = Moments(40)
    before = moments.scatter
    moments.update(rows_with_offset(9, 40, 0, 0))
    moments.update(rows_with_offset(9, 40, 1, 1))
    assert moments.scatter.ctypes.data == before.ctypes.data


def test_nothing_seen_is_nothing() -> None:
    moments = Moments(3)
    moments.merge(Moments(3))
    moments.update(np.empty((0, 3)))
    assert moments.count == 0
    assert not moments.scatter.any()
    assert pytest.approx(0) == moments.mean.sum()
