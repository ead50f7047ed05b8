"""Recipes from their fit to derived rows: values, failed rows, samples, files, layers to tap."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.preprocessing import normalize

from featreg.derived import (
    FittedRecipe,
    Rows,
    derive_arrays,
    dump_fitted,
    fit,
    fit_arrays,
    fit_bytes,
    fit_together,
    gather,
    input_shapes,
    load_fitted,
    output_width,
    plan_taps,
    sample_rows,
    width_of,
)
from featreg.errors import (
    CapabilityError,
    InputError,
    LayerError,
    MissingDependencyError,
    RequestError,
    SpecError,
    StoreError,
)
from featreg.extractor import create_extractor
from featreg.recipe import Recipe
from featreg.spec import ExtractionRequest, FeatureInfo

INFOS = {
    "C3": FeatureInfo("layer2", 4, 8, "map"),
    "tokens": FeatureInfo("norm", 5, 8, "tokens", prefix_tokens=1, class_token=True),
    "pooled": FeatureInfo("avgpool", 6, None, "vector"),
}


def layers(rows: int, dtype: str = "float32", seed: int = 0) -> dict[Any, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"C3": (4, 6, 6), "tokens": (10, 5), "pooled": (6,)}
    return {layer: (rng.normal(size=(rows, *shape)) + 3).astype(dtype) for layer, shape in shapes.items()}


def joined(features: dict[Any, np.ndarray], *names: str) -> np.ndarray:
    return np.concatenate(
        [features[name].astype(np.float64).reshape(len(features[name]), -1) for name in names], axis=1
    )


def derived(text: str, features: dict[Any, np.ndarray]) -> np.ndarray:
    """A recipe fitted on and applied to the same arrays."""
    fitted = fit_arrays(Recipe.parse(text), features, INFOS)
    return np.concatenate([values for _, values in derive_arrays(fitted, features, INFOS)])


# --- values -----------------------------------------------------------------------------------------------------------


def test_concatenation_is_row_major_and_in_the_order_of_the_recipe() -> None:
    features = layers(3)
    np.testing.assert_array_equal(derived("x=pooled,C3", features), joined(features, "pooled", "C3"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_ensemble_is_scikit_learns_pca_of_the_concatenation(dtype: str) -> None:
    features = layers(60, dtype)
    rows = joined(features, "C3", "tokens", "pooled")
    expected = SklearnPCA(8, svd_solver="full").fit_transform(rows)
    np.testing.assert_allclose(derived("x=C3,tokens,pooled:pca=8", features), expected, rtol=1e-6, atol=1e-8)


def test_poolings_come_first() -> None:
    features = layers(5)
    expected = np.concatenate(
        [features["C3"].reshape(5, 4, 3, 2, 3, 2).mean(axis=(3, 5)).reshape(5, -1), features["tokens"][:, 0]], axis=1
    )
    np.testing.assert_allclose(derived("x=C3[avgpool=2,2,0],tokens[cls]", features), expected, rtol=1e-5)


def test_steps_are_taken_in_their_order() -> None:
    features = layers(40)
    rows = normalize(joined(features, "pooled"))
    reduced = SklearnPCA(3, whiten=True, svd_solver="full").fit_transform(rows)
    expected = normalize(reduced - reduced.mean(axis=0))
    np.testing.assert_allclose(derived("pooled:l2:pca=3,whiten:center:l2", features), expected, rtol=1e-6, atol=1e-8)


def test_what_thingsvision_does_to_a_finished_matrix() -> None:
    """The formulas of its three functions on (rows, columns), read in 2.7.3."""
    features = layers(50)
    rows = joined(features, "pooled")
    np.testing.assert_allclose(derived("pooled:center", features), rows - rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    expected = rows / np.linalg.norm(rows, axis=1)[:, np.newaxis]
    np.testing.assert_allclose(derived("pooled:normalize", features), expected, rtol=1e-12)
    expected = SklearnPCA(n_components=0.9, svd_solver="full").fit_transform(rows)
    np.testing.assert_allclose(derived("pooled:compress", features), expected, rtol=1e-6, atol=1e-8)


def test_a_centring_before_pca_is_fitted_with_it() -> None:
    features = layers(40)
    fitted = fit_arrays(Recipe.parse("pooled:center:pca=3"), features, INFOS)
    center, components = fitted.steps
    np.testing.assert_allclose(center.mean, joined(features, "pooled").mean(axis=0), rtol=1e-12)  # type: ignore[union-attr]
    assert not components.mean.any()  # type: ignore[union-attr]
    np.testing.assert_allclose(fitted.apply(features), derived("pooled:pca=3", features), rtol=1e-9, atol=1e-10)


def test_rows_of_length_zero_stay_and_extremes_do_not_overflow() -> None:
    rows = np.array([[0, 0], [3e300, 4e300], [3e-310, 4e-310], [-5, 0]])
    found = derived("pooled:l2", {"pooled": rows})
    np.testing.assert_allclose(found, [[0, 0], [0.6, 0.8], [0.6, 0.8], [-1, 0]], rtol=1e-9)


def test_half_precision_is_summed_in_double() -> None:
    """The sum of the squares, and of the rows, is beyond what float16 holds."""
    rows = np.full((3000, 6), 60000, np.float16)
    features = {"pooled": rows}
    np.testing.assert_allclose(derived("pooled:l2", features), 1 / np.sqrt(6), rtol=1e-12)
    assert (derived("pooled:center", features) == 0).all()


def test_one_row_and_one_column() -> None:
    one = {"pooled": np.array([[2.0]])}
    assert derived("pooled:center", one).tolist() == [[0]]
    assert derived("pooled:l2", one).tolist() == [[1]]
    with pytest.raises(RequestError, match="cannot be fitted"):
        derived("pooled:pca=1", one)


@pytest.mark.parametrize(
    ("text", "width", "limit"),
    [
        ("pooled:pca=40", 600, 999),
        ("pooled:project=500:pca=0.9", 600, 999),
        ("pooled:pca=40", 3000, 999),
        ("pooled:pca=100", 3000, 999),
    ],
)
def test_what_a_fit_holds_is_told_before(text: str, width: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featreg.derived.components.MAX_EXACT", limit)
    monkeypatch.setattr("featreg.derived.blocks.BLOCK_BYTES", 2**16)
    recipe, rows = Recipe.parse(text), np.random.default_rng(0).normal(size=(700, width))
    fit_arrays(recipe, {"pooled": rows}, INFOS)  # whatever is loaded and kept on the first call
    tracemalloc.start()
    fit_arrays(recipe, {"pooled": rows}, INFOS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.5 < peak / fit_bytes(recipe, width) < 1.2


# --- rows that failed -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["x=C3,pooled:l2", "x=C3,pooled:center:pca=4,whiten", "x=C3,pooled:project=9,sparse"])
def test_failed_rows_are_left_out_of_the_fit_and_stay_nan(text: str, value: float) -> None:
    features = layers(30)
    whole = {layer: np.delete(array, [0, 17], axis=0) for layer, array in features.items()}
    features["C3"][0, 2, 1, 1] = value
    features["pooled"][17] = value
    fitted = fit_arrays(Recipe.parse(text), features, INFOS)
    found = fitted.apply(features)
    assert np.isnan(found[[0, 17]]).all()
    np.testing.assert_allclose(np.delete(found, [0, 17], axis=0), derived(text, whole), rtol=1e-7, atol=1e-9)
    assert fitted.rows == (28 if fitted.recipe.passes else 0)


@given(st.integers(1, 9), st.data())
def test_a_failed_row_changes_no_bit_of_its_neighbours(count: int, data: st.DataObject) -> None:
    fitted = fit_arrays(Recipe.parse("x=C3,tokens:l2:pca=5:project=3"), layers(30), INFOS)
    features = layers(count, seed=1)
    before = fitted.apply(features)
    failed = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    features["C3"][failed] = np.nan
    kept = np.setdiff1d(np.arange(count), failed)
    np.testing.assert_array_equal(fitted.apply(features)[kept], before[kept])


def test_the_inputs_are_not_changed() -> None:
    features = layers(9, "float64")
    before = {layer: array.copy() for layer, array in features.items()}
    derived("pooled:center:l2:pca=2", features)
    assert all((array == before[layer]).all() for layer, array in features.items())


def test_nothing_but_failed_rows() -> None:
    failed = {"pooled": np.full((4, 6), np.nan)}
    assert np.isnan(derived("pooled:l2", failed)).all()
    for text in ("pooled:center", "pooled:pca=2"):
        with pytest.raises(RequestError):
            derived(text, failed)


# --- samples and blocks -----------------------------------------------------------------------------------------------


def test_a_sample_is_what_it_is_fitted_on() -> None:
    features = layers(100)
    recipe = Recipe.parse("pooled:pca=3:fit=20,seed=5")
    chosen = sample_rows(100, 20, 5)
    expected = SklearnPCA(3, svd_solver="full").fit(joined(features, "pooled")[chosen])
    fitted = fit_arrays(recipe, features, INFOS)
    assert fitted.rows == 20
    np.testing.assert_allclose(
        fitted.apply(features), expected.transform(joined(features, "pooled")), rtol=1e-7, atol=1e-9
    )


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_a_sample_has_distinct_rows_in_order(count: int, size: int, seed: int) -> None:
    rows = sample_rows(count, size, seed).tolist()
    assert len(rows) == min(size, count)
    assert rows == sorted(set(rows))
    assert all(0 <= row < count for row in rows)
    assert rows == sample_rows(count, size, seed).tolist()


def test_a_sample_is_the_same_for_ever() -> None:
    assert sample_rows(10, 4, 0).tolist() == [1, 3, 7, 8]
    assert sample_rows(10**12, 3, 7).tolist() == [359980669841, 586026916006, 638480250206]


def test_every_row_is_as_likely_as_any_other() -> None:
    counts = np.bincount(np.concatenate([sample_rows(20, 5, seed) for seed in range(2000)]), minlength=20)
    expected = 2000 * 5 / 20
    assert (((counts - expected) ** 2) / expected).sum() < 40  # the chi-square of 19 degrees is beyond in 1 of 300


@pytest.mark.parametrize(("count", "size", "seed"), [(-1, 3, 0), (3, 0, 0), (3, 1, -1), (3, 1, 2**64)])
def test_samples_that_cannot_be(count: int, size: int, seed: int) -> None:
    with pytest.raises(SpecError):
        sample_rows(count, size, seed)


class Recorded:
    """An array that notes how many rows were read at once, as one on disk would be."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = self.array[rows]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("fitting", ["", ":fit=37,seed=1"])
def test_arrays_are_read_a_block_at_a_time(fitting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = layers(50)
    expected = derived(f"x=C3,pooled:center:l2:pca=3{fitting}", features)
    monkeypatch.setattr("featreg.derived.blocks.BLOCK_BYTES", 8 * 150 * 4)
    recorded = {layer: Recorded(array) for layer, array in features.items()}
    recipe = Recipe.parse(f"x=C3,pooled:center:l2:pca=3{fitting}")
    fitted = fit_arrays(recipe, recorded, INFOS)
    parts = list(derive_arrays(fitted, recorded, INFOS))
    assert [part.start for part, _ in parts] == list(range(0, 50, 4))
    np.testing.assert_allclose(np.concatenate([values for _, values in parts]), expected, rtol=1e-7, atol=1e-9)
    assert (recorded["C3"].most, recorded["pooled"].most, recorded["tokens"].most) == (4, 4, 0)


def test_blocks_are_asked_for_once_for_every_pass() -> None:
    features, asked = layers(30), []
    recipe = Recipe.parse("pooled:center:l2:pca=3:center")

    def blocks() -> Iterator[dict[Any, np.ndarray]]:
        asked.append(1)
        for start in range(0, 30, 11):
            yield {"pooled": features["pooled"][start : start + 11]}

    fitted = fit(recipe, ((6,),), blocks)
    assert len(asked) == recipe.passes == 3
    np.testing.assert_allclose(fitted.apply(features), derived(str(recipe), features), rtol=1e-7, atol=1e-9)


def test_a_recipe_that_learns_nothing_needs_no_rows() -> None:
    fitted = fit(Recipe.parse("pooled:l2:project=2"), ((6,),))
    assert fitted.apply(layers(3)).shape == (3, 2)


# --- other stores -----------------------------------------------------------------------------------------------------

TEXTS = ["x=C3,pooled:l2", "pooled:center", "x=C3,pooled:center:pca=4,whiten:fit=20", "pooled:project=3:pca=0.9:center"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_gives_the_same_bits_on_another_store(text: str) -> None:
    fitted = fit_arrays(Recipe.parse(text), layers(30), INFOS)
    other = load_fitted(dump_fitted(fitted))
    assert (other.recipe, other.shapes, other.rows, other.width) == (
        fitted.recipe,
        fitted.shapes,
        fitted.rows,
        fitted.width,
    )
    np.testing.assert_array_equal(other.apply(layers(9, seed=2)), fitted.apply(layers(9, seed=2)))


def test_equal_fits_are_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = dump_fitted(fit_arrays(Recipe.parse(TEXTS[2]), layers(30), INFOS))
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert dump_fitted(fit_arrays(Recipe.parse(TEXTS[2]), layers(30), INFOS)) == first


def equal(first: FittedRecipe, second: FittedRecipe) -> bool:
    return dump_fitted(first) == dump_fitted(second)


def test_a_damaged_file_is_said_to_be_one() -> None:
    fitted = fit_arrays(Recipe.parse("pooled:center:pca=2"), layers(30), INFOS)
    data = dump_fitted(fitted)
    for size in range(0, len(data), 7):
        with pytest.raises(StoreError):
            load_fitted(data[:size])
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        try:
            found = load_fitted(bytes(damaged))
        except StoreError:
            continue
        assert equal(found, fitted), place  # a byte that says nothing, such as a date


def saved(change: dict[str, Any]) -> bytes:
    import io

    data = dump_fitted(fit_arrays(Recipe.parse("pooled:center:pca=2"), layers(30), INFOS))
    with np.load(io.BytesIO(data)) as file:
        arrays = {**file, **change}
    out = io.BytesIO()
    np.savez(out, **{name: value for name, value in arrays.items() if value is not None})
    return out.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"0.mean": None},
        {"0.mean": np.zeros(5)},
        {"0.mean": np.zeros(6, np.float32)},
        {"0.mean": np.full(6, np.nan)},
        {"1.components": np.zeros((3, 6))},
        {"1.variances": np.zeros(1)},
        {"7.mean": np.zeros(6)},
        {"recipe": np.frombuffer(b"{}", np.uint8)},
        {"recipe": np.array(["x"], dtype=object)},
    ],
    ids=str,
)
def test_a_file_whose_parts_do_not_belong_together_is_refused(change: dict[str, Any]) -> None:
    assert load_fitted(saved({}))
    with pytest.raises(StoreError, match="no fitted recipe"):
        load_fitted(saved(change))


def test_inputs_of_another_shape_are_refused() -> None:
    fitted = fit_arrays(Recipe.parse("pooled:center"), layers(9), INFOS)
    with pytest.raises(RequestError, match="other shapes"):
        fitted.apply({"pooled": np.zeros((3, 7))})
    two = fit_arrays(Recipe.parse("x=C3,pooled"), layers(9), INFOS)
    with pytest.raises(RequestError, match="other shapes"):
        two.apply({"C3": layers(3)["C3"], "pooled": layers(4)["pooled"]})


# --- which layers, and of which shape ---------------------------------------------------------------------------------


def test_arrays_that_do_not_line_up_are_refused() -> None:
    features = layers(9)
    features["C3"] = features["C3"][:8]
    with pytest.raises(RequestError, match="line up"):
        fit_arrays(Recipe.parse("x=C3,pooled"), features, INFOS)


def test_a_missing_input_names_the_nearest() -> None:
    with pytest.raises(LayerError, match="'poold'") as caught:
        fit_arrays(Recipe.parse("poold:l2"), layers(3), INFOS)
    assert caught.value.matches == ("pooled",)


@pytest.mark.parametrize(
    "text",
    [
        "x=C3,tokens,pooled",
        "x=C3,tokens,pooled:avg",
        "C3:maxpool=3,2,1",
        "C3:adaptive_avgpool=2,3",
        "tokens:cls",
        "C3:identity",
    ],
)
def test_shapes_are_told_before_a_row_is_there(text: str) -> None:
    features, recipe = layers(2), Recipe.parse(text)
    shapes = input_shapes(recipe, INFOS, {layer: array.shape[1:] for layer, array in features.items()})
    parts = gather(recipe, features, INFOS)
    assert shapes == tuple(parts[layer].shape[1:] for layer in recipe.inputs)
    assert fit(recipe, shapes).apply(parts).shape == (2, width_of(shapes))


@pytest.mark.parametrize(
    ("text", "error"),
    [("tokens:avgpool=2", CapabilityError), ("C3:cls", CapabilityError), ("C3:avgpool=7", InputError)],
)
def test_poolings_that_cannot_be(text: str, error: type[Exception]) -> None:
    features, recipe = layers(2), Recipe.parse(text)
    with pytest.raises(error):
        input_shapes(recipe, INFOS, {layer: array.shape[1:] for layer, array in features.items()})
    with pytest.raises(error):
        gather(recipe, features, INFOS)


def test_the_width_is_known_before_the_fit_but_for_a_share() -> None:
    widths = {"l2": 6, "center": 6, "pca=4": 4, "project=5:pca=4": 4, "pca=0.9": None, "pca=0.9:l2": None}
    assert {text: output_width(Recipe.parse(f"pooled:{text}"), 6) for text in widths} == widths
    for text in ("pca=7", "project=7", "project=3:pca=4"):
        with pytest.raises(RequestError):
            output_width(Recipe.parse(f"pooled:{text}"), 6)
        with pytest.raises(RequestError):
            fit_arrays(Recipe.parse(f"pooled:{text}"), layers(30), INFOS)


def test_layers_that_only_recipes_take_are_tapped_and_pooled_on_the_device() -> None:
    request = ExtractionRequest("m", ("C5", "pooled"), pool={"C5": "max"})
    recipes = [
        Recipe.parse("a=C3,C5:avg"),
        Recipe.parse("b=C3[avg],C4"),
        Recipe.parse("c=C4:avg"),
        Recipe.parse("C2:l2"),
    ]
    taps = plan_taps(request, recipes)
    assert taps.request.layers == ("C5", "pooled", "C3", "C4", "C2")
    assert {layer: str(pool) for layer, pool in taps.request.pools.items()} == {"C5": "max", "C3": "avg"}
    assert taps.pooled == {"C3"}  # C4 is pooled by one recipe and not by the other


def test_what_is_pooled_already_is_not_pooled_again() -> None:
    features = {"C3": np.ones((2, 4))}  # as the device gave it
    found = gather(Recipe.parse("C3:avg"), features, INFOS, pooled={"C3"})
    assert found["C3"] is features["C3"]
    assert input_shapes(Recipe.parse("C3:avg"), INFOS, {"C3": (4,)}, pooled={"C3"}) == ((4,),)


def test_a_request_without_recipes_stays_as_it_is() -> None:
    request = ExtractionRequest("m", ("C5",), pool="avg", flatten=True)
    assert plan_taps(request, []).request == request


def test_a_pooling_of_all_layers_of_a_request_is_none_of_its_recipes() -> None:
    taps = plan_taps(ExtractionRequest("m", ("C5",), pool="avg", flatten=True), [Recipe.parse("C4:l2")])
    assert {layer: str(pool) for layer, pool in taps.request.pools.items()} == {"C5": "avg"}
    assert not taps.request.flatten


def test_names_are_taken_once() -> None:
    request = ExtractionRequest("m", ("C5",))
    for recipes in (["C5=C4:l2"], ["a=C4:l2", "a=C3:l2"]):
        with pytest.raises(LayerError, match="more than one layer"):
            plan_taps(request, [Recipe.parse(text) for text in recipes])


# --- what it needs ----------------------------------------------------------------------------------------------------


def test_the_import_loads_neither_scipy_nor_scikit_learn() -> None:
    code = "import featreg.derived, sys; print(sorted({'scipy', 'scipy.linalg', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "module"), [("pooled:pca=2", "scipy.linalg"), ("pooled:project=2,sparse,seed=77", "scipy.sparse")]
)
def test_without_the_extra_its_name_is_said(text: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(module)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"not installed") as caught:
        derived(text, layers(9))
    assert caught.value.remedy == 'pip install "featreg[derive]"'


def test_a_tapped_extractor_feeds_a_recipe() -> None:
    """What the backend pools, and what is pooled here, from layers that the request does not keep."""
    taps = plan_taps(
        ExtractionRequest("numpy:tinynet", ("pooled",), weights="synthetic:0", flatten=True),
        recipes := [Recipe.parse("a=C2[avg],C1:l2"), Recipe.parse("b=C1:max")],
    )
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    with (
        create_extractor(taps.request) as tapped,
        create_extractor("numpy:tinynet", ["C1", "C2"], weights="synthetic:0") as raw,
    ):
        features, infos = dict(tapped(images)), tapped.describe((32, 32))
        maps = {layer: np.asarray(values, np.float64) for layer, values in raw(images).items()}
    assert list(features) == ["pooled", "C2", "C1"]
    assert taps.pooled == {"C2"}
    rows = np.concatenate([maps["C2"].mean(axis=(2, 3)), maps["C1"].reshape(4, -1)], axis=1)
    for recipe, expected in zip(recipes, (normalize(rows), maps["C1"].max(axis=(2, 3))), strict=True):
        shapes = {layer: values.shape[1:] for layer, values in features.items()}
        fitted = fit(recipe, input_shapes(recipe, infos, shapes, taps.pooled))
        found = fitted.apply(gather(recipe, features, infos, taps.pooled))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(st.integers(2, 30), st.integers(1, 7), st.lists(st.sampled_from([None, 2, 5, 9]), min_size=4, max_size=4))
def test_recipes_are_fitted_together_as_each_is_alone(count: int, size: int, samples: list[int | None]) -> None:
    features = layers(count)
    texts = ["a=pooled:center", "b=C3[avg]:l2:center:l2:pca=1", "c=C3[avg],pooled:pca=2", "d=tokens[cls]:l2"]
    recipes = [
        Recipe.parse(text + ("" if n is None or text[0] == "d" else f":fit={n}"))
        for text, n in zip(texts, samples, strict=True)
    ]
    shapes = {
        recipe.name: input_shapes(recipe, INFOS, {k: v.shape[1:] for k, v in features.items()}) for recipe in recipes
    }
    sweeps = []

    def sweep(numbers: Any) -> Iterator[Rows]:
        rows = np.arange(count) if numbers is None else numbers
        sweeps.append(len(rows))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield Rows(some, {layer: values[some] for layer, values in features.items()}, INFOS)

    found = fit_together(recipes, shapes, count, sweep)
    assert len(sweeps) == 2
    for recipe in recipes:
        rows = np.arange(count) if recipe.sample is None else sample_rows(count, recipe.sample, 0)
        alone = gather(recipe, {layer: values[rows] for layer, values in features.items()}, INFOS)
        expected = fit(recipe, shapes[recipe.name], lambda alone=alone: [alone])
        assert found[recipe.name].rows == expected.rows
        np.testing.assert_allclose(found[recipe.name].apply(alone), expected.apply(alone), atol=1e-6)
