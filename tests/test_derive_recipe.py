"""Recipes of derived layers: their text, their JSON, and what contradicts itself."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg.errors import LayerError, SpecError
from featreg.pool import Pool
from featreg.recipe import Recipe
from featreg.serialize import dumps, from_dict, loads, to_dict
from featreg.steps import PCA, Centering, L2Norm, RandomProjection, parse_step

seeds = st.integers(0, 2**64 - 1)
steps = st.one_of(
    st.just(L2Norm()),
    st.just(Centering()),
    st.builds(PCA, components=st.integers(1, 8192), whiten=st.booleans()),
    st.builds(PCA, variance=st.floats(1e-9, 0.999999), whiten=st.booleans()),
    st.builds(RandomProjection, components=st.integers(1, 4096), seed=seeds),
    st.builds(
        RandomProjection,
        components=st.integers(1, 4096),
        distribution=st.just("sparse"),
        density=st.none() | st.floats(1e-9, 1),
        seed=seeds,
    ),
)
layers = st.lists(
    st.integers(-9, 9) | st.from_regex(r"[a-z]\w{0,5}(\.\w{1,3})?", fullmatch=True), min_size=1, unique=True
)
pools = st.sampled_from(["avg", "max", "gem=4.5", "avgpool=10,10,4", "avgpool=3x2,1,1x0", "adaptive_avgpool=2,2"])


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    inputs = draw(layers)
    own = draw(st.dictionaries(st.sampled_from(inputs), pools))
    chosen = draw(st.lists(steps, min_size=1, max_size=4))
    sample = draw(st.none() | st.integers(1, 10**6)) if any(step.fitted for step in chosen) else None
    seed = 0 if sample is None else draw(seeds)
    pool: Any = draw(st.none() | pools) or own or None
    return Recipe(tuple(inputs), tuple(chosen), pool, sample, seed, draw(st.sampled_from(["", "small", "a.b-c"])))


@given(recipes())
def test_text_and_json_and_pickle_give_an_equal_recipe(recipe: Recipe) -> None:
    for other in (Recipe.parse(str(recipe)), loads(Recipe, dumps(recipe)), pickle.loads(pickle.dumps(recipe))):
        assert other == recipe
        assert hash(other) == hash(recipe)
        assert str(other) == str(recipe)


def test_the_texts_of_the_command_line() -> None:
    assert Recipe.parse("name=C3,C4,pooled:pca=256") == Recipe(("C3", "C4", "pooled"), (PCA(256),), name="name")
    assert Recipe.parse("pooled:l2") == Recipe(("pooled",), (L2Norm(),), name="pooled:l2")
    assert Recipe.parse("C5:avgpool=7,7,1:center:pca=64") == Recipe(
        ("C5",), (Centering(), PCA(64)), Pool("avgpool", (7, 7), (7, 7), (1, 1))
    )
    assert Recipe.parse("x=C3[avgpool=2,2,0],-1:project=8,sparse=1/3,seed=5:pca=0.5,whiten:fit=100,seed=7") == Recipe(
        ("C3", -1),
        (RandomProjection(8, "sparse", 1 / 3, 5), PCA(variance=0.5, whiten=True)),
        {"C3": "avgpool=2,2,0"},
        sample=100,
        seed=7,
        name="x",
    )
    assert Recipe.parse("C5:pca=2:fit=all") == Recipe.parse("C5:pca=2")


def test_thingsvisions_names_are_read() -> None:
    assert parse_step("normalize") == parse_step("l2")
    assert parse_step("compress") == parse_step("pca=0.9")
    assert parse_step("compress=0.5") == PCA(variance=0.5)


def test_one_pooling_for_every_input_is_one_pooling() -> None:
    assert Recipe.parse("C3[avg],C4[avg]") == Recipe.parse("C3,C4:avg")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "C5",
        ":l2",
        "=C5:l2",
        "C5,:l2",
        "C5[avg]x:l2",
        "C5[avg]:max:l2",
        "C5:l2:avg",
        "C5:lw2",
        "C5:pca",
        "C5:pca=0",
        "C5:pca=1.0",
        "C5:pca=2.5",
        "C5:pca=-1",
        "C5:pca=3,white",
        "C5:pca=3:fit=0",
        "C5:pca=3:fit=ten",
        "C5:l2:fit=10",
        "C5:fit=10:pca=3",
        "C5:project",
        "C5:project=4,sparse=0.0",
        "C5:project=4,sparse=1.5",
        "C5:project=4,gaussian=1",
        f"C5:project=4,seed={2**64}",
    ],
)
def test_wrong_texts_are_refused(text: str) -> None:
    with pytest.raises(SpecError):
        Recipe.parse(text)


def test_a_misspelt_step_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="centre") as caught:
        Recipe.parse("C5:centre")
    assert caught.value.matches == ("center",)


def test_a_pooling_of_another_layer_is_refused() -> None:
    with pytest.raises(LayerError, match="'C4'"):
        Recipe(("C3",), (L2Norm(),), {"C4": "avg"})


def test_inputs_are_layers_each_once() -> None:
    for inputs in ((), ("C3", "C3"), (True,)):
        with pytest.raises(LayerError):
            Recipe(inputs, (L2Norm(),))


def test_contradictions_are_refused() -> None:
    for wrong in (
        PCA,
        lambda: PCA(3, 0.5),
        lambda: RandomProjection(3, density=0.5),
        lambda: Recipe(("C3",), (PCA(3),), seed=1),
        lambda: Recipe(("C3",), ("l2",)),
    ):
        with pytest.raises(SpecError):
            wrong()


@pytest.mark.parametrize("change", [{"steps": ["l3"]}, {"steps": [7]}, {"steps": "l2"}, {"pool": "mean"}, {"more": 1}])
def test_wrong_json_is_refused(change: dict[str, Any]) -> None:
    plain = to_dict(Recipe.parse("C5:l2"))
    with pytest.raises(SpecError):
        from_dict(Recipe, {**plain, **change})


def test_a_centring_before_pca_takes_no_pass_of_its_own() -> None:
    passes = {
        "l2": 0,
        "center": 1,
        "center:pca=3": 1,
        "pca=3:center": 2,
        "center:l2:pca=3": 2,
        "center:center:pca=3": 2,
    }
    assert {text: Recipe.parse(f"C5:{text}").passes for text in passes} == passes
