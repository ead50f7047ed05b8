"""Principal components, held against numpy.linalg.svd of the whole matrix and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.decomposition import IncrementalPCA

from featreg.derived import components
from featreg.derived.components import Components, ExactFit, IncrementalFit, components_fit
from featreg.errors import RequestError
from featreg.steps import PCA

rng = np.random.default_rng(0)
ROWS = rng.normal(size=(200, 24)) @ rng.normal(size=(24, 24)) + 5


def fitted(step: PCA, rows: np.ndarray, *, blocks: int = 7) -> Components:
    fit = components_fit(step, rows.shape[1])
    for block in np.array_split(rows, blocks):
        fit.update(block.copy())
    return fit.finish()


def test_components_and_variances_are_those_of_the_svd() -> None:
    found = fitted(PCA(24), ROWS)
    _, singular, vectors = np.linalg.svd(ROWS - ROWS.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.variances, singular**2 / 199, rtol=1e-9)
    np.testing.assert_allclose(np.abs((found.components * vectors).sum(axis=1)), 1, rtol=1e-9)
    np.testing.assert_allclose(found.total_variance, ROWS.var(axis=0, ddof=1).sum(), rtol=1e-12)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("count", [1, 5, 24])
def test_coordinates_are_scikit_learns_signs_included(count: int, whiten: bool) -> None:
    expected = SklearnPCA(count, whiten=whiten, svd_solver="full").fit(ROWS).transform(ROWS)
    np.testing.assert_allclose(
        fitted(PCA(count, whiten=whiten), ROWS).apply(ROWS.copy()), expected, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 0.9999999])
def test_a_share_of_the_variance_is_counted_as_scikit_learn_does(share: float) -> None:
    assert fitted(PCA(variance=share), ROWS).width == SklearnPCA(share, svd_solver="full").fit(ROWS).n_components_


def test_a_share_that_is_met_exactly_takes_one_more_as_with_scikit_learn() -> None:
    rows = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # half of the variance along each
    assert SklearnPCA(0.5, svd_solver="full").fit(rows).n_components_ == 2
    assert fitted(PCA(variance=0.5), rows, blocks=1).width == 2


@given(st.integers(0, 99), st.integers(2, 30), st.integers(1, 9), st.booleans(), st.data())
def test_exact_components_do_not_depend_on_blocks_and_merges(
    seed: int, count: int, width: int, whiten: bool, data: st.DataObject
) -> None:
    """Coordinates without their arbitrary part: distances in the space of all components are those of the rows."""
    rows = np.random.default_rng(seed).normal(size=(count, width))
    bounds = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    step = PCA(min(count, width), whiten=whiten)
    parts = [ExactFit(step, width) for _ in range(len(bounds) + 1)]
    for part, block in zip(parts, np.split(rows, bounds), strict=True):
        part.update(block.copy())
    for part in data.draw(st.permutations(parts[1:])):
        parts[0].merge(part)
    found = parts[0].finish()
    expected = SklearnPCA(step.components, svd_solver="full").fit(rows)
    np.testing.assert_allclose(found.variances, expected.explained_variance_, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(found.width), atol=1e-9)
    if not whiten:
        coordinates = found.apply(rows.copy())
        np.testing.assert_allclose(
            coordinates @ coordinates.T, expected.transform(rows) @ expected.transform(rows).T, atol=1e-8
        )


def test_the_largest_entry_of_every_component_is_positive() -> None:
    for found in (fitted(PCA(24), ROWS), fitted(PCA(24), -ROWS)):
        largest = np.abs(found.components).argmax(axis=1)
        assert (found.components[np.arange(24), largest] > 0).all()


def test_constant_columns_get_no_weight_and_no_nan() -> None:
    rows = ROWS.copy()
    rows[:, [0, 7]] = [3.0, 0.0]
    found = fitted(PCA(24, whiten=True), rows)
    coordinates = found.apply(rows.copy())
    assert np.abs(found.components[:22, [0, 7]]).max() < 1e-7
    np.testing.assert_allclose(coordinates[:, :22].std(axis=0, ddof=1), 1, rtol=1e-7)
    assert (coordinates[:, 22:] == 0).all()


def test_rows_that_are_all_alike() -> None:
    rows = np.full((5, 3), 2.5)
    assert (fitted(PCA(2, whiten=True), rows).apply(rows.copy()) == 0).all()
    with pytest.raises(RequestError, match="do not vary"):
        fitted(PCA(variance=0.9), rows)


def test_one_column() -> None:
    found = fitted(PCA(1), ROWS[:, :1])
    np.testing.assert_allclose(found.apply(ROWS[:, :1].copy()), ROWS[:, :1] - ROWS[:, :1].mean(), rtol=1e-12)
    assert found.components.tolist() == [[1.0]]


def test_as_many_rows_as_components() -> None:
    found = fitted(PCA(4), ROWS[:4], blocks=2)
    expected = SklearnPCA(4, svd_solver="full").fit(ROWS[:4])
    np.testing.assert_allclose(found.apply(ROWS[:4].copy())[:, :3], expected.transform(ROWS[:4])[:, :3], rtol=1e-6)
    assert found.variances[3] < 1e-9


@pytest.mark.parametrize(("step", "rows"), [(PCA(5), 4), (PCA(1), 1), (PCA(1), 0), (PCA(variance=0.5), 1)])
def test_too_few_rows_are_said(step: PCA, rows: int) -> None:
    for fit in (ExactFit(step, 24), *([IncrementalFit(step, 24)] if step.components else [])):
        if rows:
            fit.update(ROWS[:rows].copy())
        with pytest.raises(RequestError, match="cannot be fitted") as caught:
            fit.finish()
        assert caught.value.got == str(rows)


def test_more_components_than_columns_are_refused() -> None:
    with pytest.raises(RequestError, match="25 principal components of 24 columns"):
        components_fit(PCA(25), 24)


# --- wide rows --------------------------------------------------------------------------------------------------------


def test_width_decides_how_components_are_found() -> None:
    assert isinstance(components_fit(PCA(2), components.MAX_EXACT + 1), IncrementalFit)


def incremental(step: PCA, rows: np.ndarray, sizes: list[int]) -> Components:
    fit = IncrementalFit(step, rows.shape[1])
    for block in np.split(rows, np.cumsum(sizes)):
        fit.update(block.copy())
    return fit.finish()


def test_few_wide_rows_are_exact() -> None:
    found = incremental(PCA(5, whiten=True), ROWS, [200])
    expected = SklearnPCA(5, whiten=True, svd_solver="full").fit(ROWS)
    np.testing.assert_allclose(found.apply(ROWS.copy()), expected.transform(ROWS), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.total_variance, ROWS.var(axis=0, ddof=1).sum(), rtol=1e-9)


def test_many_wide_rows_are_scikit_learns_in_batches_of_the_same_rows() -> None:
    rows = np.random.default_rng(1).normal(size=(700, 24)) @ rng.normal(size=(24, 24))
    expected = IncrementalPCA(5)
    for batch in (rows[:128], rows[128:256], rows[256:384], rows[384:512], rows[512:]):
        expected.partial_fit(batch)
    found = incremental(PCA(5), rows, [100, 1, 0, 400, 60, 139])
    np.testing.assert_allclose(found.apply(rows.copy()), expected.transform(rows), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.variances, expected.explained_variance_, rtol=1e-9)


@pytest.mark.parametrize("sizes", [[1] * 699, [350, 349], [500, 150], [127, 1, 128, 129]])
def test_the_blocks_of_wide_rows_do_not_count(sizes: list[int]) -> None:
    rows = np.random.default_rng(2).normal(size=(700, 24))
    first, second = incremental(PCA(5), rows, [700]), incremental(PCA(5), rows, sizes)
    np.testing.assert_array_equal(first.components, second.components)
    np.testing.assert_array_equal(first.mean, second.mean)


@pytest.mark.filterwarnings("error")
def test_wide_rows_that_are_all_alike() -> None:
    rows = np.full((300, 5), 2.5)
    assert (incremental(PCA(2, whiten=True), rows, [299]).apply(rows.copy()) == 0).all()


def test_wide_rows_of_low_rank_are_found_exactly() -> None:
    low = np.random.default_rng(3).normal(size=(600, 3)) @ rng.normal(size=(3, 40)) + 7
    found = incremental(PCA(3), low, [300])
    expected = SklearnPCA(3, svd_solver="full").fit(low)
    np.testing.assert_allclose(found.apply(low.copy()), expected.transform(low), rtol=1e-6, atol=1e-8)


def test_a_share_of_the_variance_of_wide_rows_is_refused() -> None:
    with pytest.raises(RequestError, match="a share of the variance"):
        components_fit(PCA(variance=0.9), components.MAX_EXACT + 1)
