"""Random projections: their distribution, that distances are kept, and that every machine makes the same matrix."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.random_projection import johnson_lindenstrauss_min_dim

from featreg.derived import projection
from featreg.derived.projection import check_projection, project, projection_block
from featreg.errors import RequestError
from featreg.steps import RandomProjection

GAUSSIAN = RandomProjection(96, seed=3)
SPARSE = RandomProjection(96, "sparse", seed=3)
ACHLIOPTAS = RandomProjection(96, "sparse", 1 / 3, seed=3)
KINDS = pytest.mark.parametrize("step", [GAUSSIAN, SPARSE, ACHLIOPTAS], ids=str)


def matrix(step: RandomProjection, width: int) -> np.ndarray:
    return projection_block(step, 0, width, width)


@KINDS
def test_a_product_with_the_matrix(step: RandomProjection) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 500))
    np.testing.assert_allclose(project(rows, step), rows @ matrix(step, 500), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 80), st.integers(1, 40), st.sampled_from([None, "sparse"]), st.data())
def test_any_blocks_make_the_same_matrix(width: int, count: int, kind: str | None, data: st.DataObject) -> None:
    step = RandomProjection(count, kind or "gaussian", seed=data.draw(st.integers(0, 2**64 - 1)))
    bounds = [0, *sorted(data.draw(st.lists(st.integers(0, width), max_size=4))), width]
    blocks = [projection_block(step, start, stop, width) for start, stop in itertools.pairwise(bounds)]
    np.testing.assert_array_equal(np.concatenate(blocks), matrix(step, width))


@pytest.mark.parametrize("held", [0, 2**30])
@KINDS
def test_a_matrix_that_is_too_large_to_keep_is_the_same(
    step: RandomProjection, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(1).normal(size=(3, 300))
    expected = rows @ matrix(step, 300)
    monkeypatch.setattr(projection, "HELD_BYTES", held)
    monkeypatch.setattr(projection, "BLOCK_WORDS", 1024)
    projection._held_blocks.cache_clear()
    np.testing.assert_allclose(project(rows, step), expected, rtol=1e-12, atol=1e-12)
    projection._held_blocks.cache_clear()


def test_the_bits_are_those_of_every_other_machine() -> None:
    digests = {
        str(step): hashlib.sha256(matrix(step, 1000).astype("<f8").tobytes()).hexdigest()[:16]
        for step in (GAUSSIAN, ACHLIOPTAS, SPARSE)
    }
    assert digests == {
        "project=96,seed=3": "4f11cfba94695db3",
        "project=96,sparse=0.3333333333333333,seed=3": "bc2f64d1316a7c1f",
        "project=96,sparse,seed=3": "4795a09ea10f59f3",
    }


def words(step: RandomProjection, row: int, per_row: int) -> list[int]:
    """The words of a row, by the counter alone."""
    tag = int.from_bytes(step.distribution.encode().ljust(8, b"\0"), "little")
    key = np.array([step.seed, tag], dtype=np.uint64)
    found = np.random.Philox(key=key, counter=row * per_row // 4).random_raw(per_row)
    return [int(word) for word in found]


def test_an_entry_follows_from_its_place_in_whole_numbers() -> None:
    """Row 7 of 10 columns, whose Gaussian entries take 3 words of 4, and whose sparse ones take 5 of 8."""
    quantiles = stats.norm.ppf((np.arange(65536) + 0.5) / 65536)
    quantiles = np.round(quantiles / np.sqrt((quantiles**2).mean()) * 2**20) / 2**20
    found = words(RandomProjection(10, seed=9), 7, 4)
    expected = [quantiles[found[entry // 4] >> 16 * (entry % 4) & 0xFFFF] * (1 / np.sqrt(10)) for entry in range(10)]
    np.testing.assert_array_equal(projection_block(RandomProjection(10, seed=9), 7, 8, 99), [expected])

    sparse = RandomProjection(10, "sparse", 0.5, seed=9)
    found = words(sparse, 7, 8)
    halves = [found[entry // 2] >> 32 * (entry % 2) & 0xFFFFFFFF for entry in range(10)]
    expected = [(1 if half % 2 else -1) * np.sqrt(1 / 5) if half // 2 < 2**30 else 0 for half in halves]
    np.testing.assert_allclose(projection_block(sparse, 7, 8, 99), [expected], rtol=1e-15)


def test_the_quantiles_are_normal() -> None:
    table = projection._quantiles().astype(np.float64)
    np.testing.assert_allclose(table, stats.norm.ppf((np.arange(65536) + 0.5) / 65536), rtol=1e-4, atol=1e-6)
    assert abs((table**2).mean() - 1) < 1e-6
    assert (table == -table[::-1]).all()
    assert (table * 2**20 % 1 == 0).all()


def test_gaussian_entries_are_normal_and_independent() -> None:
    entries = matrix(GAUSSIAN, 2000) * np.sqrt(96)
    assert stats.kstest(entries.ravel(), "norm").pvalue > 0.01
    assert abs(entries.mean()) < 4 / np.sqrt(entries.size)
    correlation = np.corrcoef(entries.T)
    assert np.abs(correlation - np.eye(96)).max() < 5 / np.sqrt(2000)


@pytest.mark.parametrize(("step", "density"), [(ACHLIOPTAS, 1 / 3), (SPARSE, 1 / np.sqrt(3000))])
def test_sparse_entries_have_their_density_and_variance(step: RandomProjection, density: float) -> None:
    entries = matrix(step, 3000)
    share = (entries != 0).mean()
    assert abs(share - density) < 4 * np.sqrt(density / entries.size)
    np.testing.assert_allclose(np.unique(np.abs(entries)), [0, 1 / np.sqrt(density * 96)], rtol=1e-6)
    signs = np.sign(entries[entries != 0])
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_distances_are_kept_as_johnson_and_lindenstrauss_say(kind: str) -> None:
    count, width, epsilon = 30, 2000, 0.35
    components = johnson_lindenstrauss_min_dim(count, eps=epsilon)
    step = RandomProjection(int(components), kind, seed=11)  # type: ignore[arg-type]
    rows = np.random.default_rng(5).normal(size=(count, width))
    pairs = np.triu_indices(count, 1)
    before = ((rows[pairs[0]] - rows[pairs[1]]) ** 2).sum(axis=1)
    projected = project(rows, step)
    ratios = ((projected[pairs[0]] - projected[pairs[1]]) ** 2).sum(axis=1) / before
    assert 1 - epsilon < ratios.min()
    assert ratios.max() < 1 + epsilon
    assert 0.95 < ratios.mean() < 1.05


def test_seeds_and_distributions_differ() -> None:
    found = [matrix(RandomProjection(8, kind, seed=seed), 64) for kind in ("gaussian", "sparse") for seed in (0, 1)]
    assert all((first != second).any() for place, first in enumerate(found) for second in found[:place])


def test_one_column_to_one() -> None:
    assert project(np.array([[2.0], [-4.0]]), RandomProjection(1, "sparse")).ravel().tolist() in ([2, -4], [-2, 4])


def test_more_components_than_columns_are_refused() -> None:
    with pytest.raises(RequestError, match="96 columns from 95"):
        check_projection(GAUSSIAN, 95)
