"""The specification's classes: shapes against counting, rules, freezing, equality."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg.errors import CapabilityError, InputError, LayerError, SpecError
from featreg.pool import Pool
from featreg.request import thaw
from featreg.spec import (
    ExtractionRequest,
    FeatureInfo,
    InputRule,
    MeasuredGrid,
    ModelInfo,
    Preprocess,
)

sides = st.integers(1, 70)
sizes = st.tuples(sides, sides)
reductions = st.sampled_from([1, 2, 3, 4, 8, 14, 16, 32])


def whole_cells(side: int, reduction: int) -> int:
    """How many whole cells fit, counted."""
    return sum(1 for end in range(reduction, side + 1, reduction))


def begun_cells(side: int, reduction: int) -> int:
    """How many cells are begun, counted."""
    return sum(1 for start in range(0, side, reduction))


# --- FeatureInfo ------------------------------------------------------------------------------------------------------


@given(sizes, reductions, st.integers(1, 9), st.integers(1, 5))
def test_ceil_shape(size: tuple[int, int], reduction: int, channels: int, batch: int) -> None:
    info = FeatureInfo("x", channels, reduction, "map")
    rows, columns = (begun_cells(side, reduction) for side in size)
    assert info.shape(batch, *size) == (batch, channels, rows, columns)


@given(sizes, reductions, st.integers(0, 5), st.integers(1, 9))
def test_floor_shape_of_tokens(size: tuple[int, int], reduction: int, prefix: int, channels: int) -> None:
    info = FeatureInfo("x", channels, reduction, "tokens", prefix_tokens=prefix, rounding="floor")
    rows, columns = (whole_cells(side, reduction) for side in size)
    if rows and columns:
        assert info.grid(*size) == (rows, columns)
        assert info.shape(3, *size) == (3, prefix + rows * columns, channels)
    else:
        with pytest.raises(InputError, match="empty"):
            info.shape(3, *size)


def test_measured_shape() -> None:
    info = FeatureInfo("x", 8, 16, "map", rounding="measured", measured=[MeasuredGrid((225, 300), (15, 18))])
    assert info.shape(2, 225, 300) == (2, 8, 15, 18)
    with pytest.raises(InputError, match="not measured at 224x224") as caught:
        info.shape(2, 224, 224)
    assert "(225, 300)" in caught.value.expected


def test_vector_shape_needs_no_size() -> None:
    info = FeatureInfo("x", 8, None, "vector")
    assert info.shape(2, 0, 0) == (2, 8)
    with pytest.raises(SpecError, match="vector"):
        info.grid(224, 224)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (-8, 8)])
@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_no_image_has_no_grid(size: tuple[int, int], rounding: Any) -> None:
    with pytest.raises(InputError, match="empty"):
        FeatureInfo("x", 8, 4, "map", rounding=rounding).grid(*size)


def test_numpy_numbers_become_plain() -> None:
    info = FeatureInfo("x", np.int64(8), np.int32(4), "map", index=np.uint8(2))
    assert info == FeatureInfo("x", 8, 4, "map", index=2)
    assert all(type(value) is int for value in (info.channels, info.reduction, info.index))
    side: Any = np.int64(9)
    assert all(type(found) is int for found in info.shape(1, side, side))


@pytest.mark.parametrize("value", [True, 8.0, np.float64(8), "8", None, 0, -1, np.True_])
def test_channels_are_a_positive_whole_number(value: Any) -> None:
    with pytest.raises(SpecError, match="channels") as caught:
        FeatureInfo("x", value, 4, "map")
    assert caught.value.got == repr(value)


# --- InputRule --------------------------------------------------------------------------------------------------------


@given(sizes, st.integers(1, 9), sizes)
def test_rule_takes_what_it_says(minimum: tuple[int, int], multiple: int, size: tuple[int, int]) -> None:
    rule = InputRule(multiple_of=multiple, minimum=minimum)
    fits = all(
        side in range(multiple, 100, multiple) and side >= least for side, least in zip(size, minimum, strict=True)
    )
    if fits:
        rule.check(*size)
    else:
        with pytest.raises(InputError) as caught:
            rule.check(*size)
        assert caught.value.got == f"{size[0]}x{size[1]}"
        assert str(rule) in caught.value.expected


def test_fixed_size_alone_decides() -> None:
    rule = InputRule(fixed=(224, 192), multiple_of=100, minimum=(999, 999))
    rule.check(224, 192)
    with pytest.raises(InputError, match="size"):
        rule.check(192, 224)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (InputRule(), "any size"),
        (InputRule(minimum=(1, 32)), "at least 1x32"),
        (InputRule(minimum=(32, 1)), "at least 32x1"),
        (InputRule(multiple_of=14, minimum=(28, 28)), "at least 28x28, multiples of 14"),
        (InputRule(fixed=(224, 224)), "exactly 224x224"),
    ],
)
def test_rule_in_words(rule: InputRule, text: str) -> None:
    assert str(rule) == text


# --- Preprocess -------------------------------------------------------------------------------------------------------


def test_preprocess_accepts_what_means_the_same() -> None:
    mean = np.array([0.5, 0.25, 0.125], np.float32)
    given_ = Preprocess([256, 256], (np.int64(224), 224), mean, [1, 1, 1], fill=7)
    assert given_ == Preprocess((256, 256), (224, 224), (0.5, 0.25, 0.125), (1.0, 1.0, 1.0), fill=(7, 7, 7))
    assert hash(given_) == hash(attrs.evolve(given_))


@pytest.mark.parametrize("mean", [None, "imagenet", (0.5, 0.5), (0.5, 0.5, "0.5"), (0.5, 0.5, float("nan")), 0.5])
def test_mean_is_three_finite_numbers(mean: Any) -> None:
    with pytest.raises(SpecError, match="mean"):
        Preprocess(None, None, mean, (1, 1, 1))


# --- ModelInfo --------------------------------------------------------------------------------------------------------

INFO = ModelInfo(
    "timm",
    "net",
    (224, 224),
    (
        FeatureInfo("stem", 8, 2, "map", level="C1", index=0),
        FeatureInfo("stage", 16, 4, "map", level="C2", index=1),
        FeatureInfo("extra", 16, 4, "map", index=2),
        FeatureInfo("stage", 16, 4, "map", head="features"),
        FeatureInfo("pool", 16, None, "vector", head="pooled"),
    ),
    Preprocess(None, None, (0, 0, 0), (1, 1, 1)),
)


def test_deviations_are_sentences_in_order() -> None:
    assert INFO.deviations == ()
    assert attrs.evolve(INFO, deviations=["b", "a"]).deviations == ("b", "a")
    for wrong in ("one sentence", [""], [1], None):
        with pytest.raises(SpecError, match="deviations are sentences"):
            attrs.evolve(INFO, deviations=wrong)


@pytest.mark.parametrize(
    ("layer", "position"),
    [
        ("C1", 0),
        ("C2", 1),
        ("features", 3),
        ("pooled", 4),
        ("extra", 2),
        ("stage", 1),
        (0, 0),
        (2, 2),
        (-1, 2),
        (-3, 0),
    ],
)
def test_resolve(layer: str | int, position: int) -> None:
    assert INFO.resolve(layer) is INFO.features[position]
    if isinstance(layer, int):
        assert INFO.resolve(np.int64(layer)) is INFO.features[position]  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", ["C3", "c1", "", "logit", 3, -4, True, 1.0, None])
def test_resolve_unknown(layer: Any) -> None:
    with pytest.raises(LayerError) as caught:
        INFO.resolve(layer)
    assert "featreg describe timm:net" in caught.value.remedy


def test_a_head_that_the_model_does_not_have_is_a_missing_capability() -> None:
    with pytest.raises(CapabilityError, match="no head 'logits'") as caught:
        INFO.resolve("logits")
    assert caught.value.expected == "one of features, pooled"


def test_resolve_names_the_nearest() -> None:
    with pytest.raises(LayerError) as caught:
        INFO.resolve("Featuers")
    assert caught.value.matches == ("features",)


def test_blocks_are_the_indices_of_a_model_of_one_stride() -> None:
    blocks = [FeatureInfo(f"blocks.{k}", 8, 16, "map", index=k, level="C4" if k == 2 else None) for k in range(3)]
    plain = attrs.evolve(INFO, features=(*blocks, FeatureInfo("norm", 8, 16, "tokens", head="tokens")))
    assert [plain.resolve(f"block.{k}") for k in range(3)] == list(plain.features[:3])
    assert plain.is_block("block.2")
    assert not any(plain.is_block(layer) for layer in ("block.3", "block.-1", "block", 1))
    with pytest.raises(LayerError) as caught:
        plain.resolve("block.3")
    assert "block.2" in caught.value.matches
    assert not INFO.is_block("block.0"), "several strides"
    with pytest.raises(LayerError):
        INFO.resolve("block.0")


def test_a_native_name_stands_for_what_the_module_gives_and_a_block_for_the_map() -> None:
    blocks = [FeatureInfo(f"blocks.{k}", 8, 16, "map", index=k, level="C4" if k == 1 else None) for k in range(2)]
    tokens = [FeatureInfo(f"blocks.{k}", 8, 16, "tokens", prefix_tokens=1, class_token=True) for k in range(2)]
    plain = attrs.evolve(INFO, features=blocks, native=tokens, input_rule=InputRule(fixed=(224, 224)))
    assert plain.resolve("blocks.1").shape(1, 224, 224) == (1, 197, 8)
    assert [plain.resolve(layer).shape(1, 224, 224) for layer in ("block.1", "C4", 1)] == [(1, 8, 14, 14)] * 3
    with pytest.raises(InputError):
        plain.resolve("blocks.1").shape(1, 225, 225)
    assert attrs.evolve(plain, native=()).resolve("blocks.1") == plain.features[1]


def test_keys() -> None:
    assert INFO.keys == ("C1", "C2", "features", "pooled")
    assert INFO.id == "timm:net"


def test_capabilities_are_sorted_and_once() -> None:
    assert attrs.evolve(INFO, capabilities=["grad", "cuda", "grad"]).capabilities == ("cuda", "grad")
    with pytest.raises(SpecError, match="tpu"):
        attrs.evolve(INFO, capabilities=("cuda", "tpu"))
    with pytest.raises(SpecError, match="capabilities"):
        attrs.evolve(INFO, capabilities="cuda")


def test_a_map_without_one_stride_is_measured() -> None:
    grids = [MeasuredGrid((20, 30), (2, 3))]
    info = FeatureInfo("x", 4, None, "map", rounding="measured", measured=grids)
    assert info.shape(5, 20, 30) == (5, 4, 2, 3)
    with pytest.raises(InputError, match="not measured at 20x31"):
        info.shape(5, 20, 31)
    kinds: list[tuple[Any, Any]] = [("map", "ceil"), ("map", "floor"), ("tokens", "measured")]
    for kind, rounding in kinds:
        with pytest.raises(SpecError, match="has reduction None"):
            FeatureInfo("x", 4, None, kind, rounding=rounding)


def test_a_measured_vector_has_its_width_at_the_sizes_listed() -> None:
    info = FeatureInfo("x", 24, None, "vector", rounding="measured", measured=[MeasuredGrid((20, 30), (2, 3))])
    assert info.shape(5, 20, 30) == (5, 24)
    with pytest.raises(InputError, match="not measured at 30x20"):
        info.shape(5, 30, 20)
    with pytest.raises(SpecError, match="no grid"):
        info.grid(20, 30)


# --- ExtractionRequest ------------------------------------------------------------------------------------------------


def request(**fields: Any) -> ExtractionRequest:
    return ExtractionRequest(**{"model": "timm:net", "layers": ["C5"], **fields})


@pytest.mark.parametrize(
    ("given_", "layers"),
    [
        ("C5", ("C5",)),
        (-1, (-1,)),
        (np.int64(3), (3,)),
        (["C5", np.int32(0)], ("C5", 0)),
        (np.array([0, 2]), (0, 2)),
        ((layer for layer in ("C2", "C5")), ("C2", "C5")),
        (["1", 1], ("1", 1)),
    ],
)
def test_layers(given_: Any, layers: tuple[str | int, ...]) -> None:
    found = request(layers=given_).layers
    assert found == layers
    assert [type(layer) for layer in found] == [type(layer) for layer in layers]


@pytest.mark.parametrize(
    "given_",
    [
        [], (), None, 1.0, True, b"C5", {"C5"}, {"C5": 1}, [""], [True], [1.0], [None], [["C5"]], ["C5", "C5"],
        [0, np.int64(0)], np.array([0.5]),
    ],
)  # fmt: skip
def test_layers_refused(given_: Any) -> None:
    with pytest.raises(LayerError):
        request(layers=given_)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": ""}, {"model": None}, {"model": 5}, {"weights": ""}, {"weights": True}, {"device": None},
        {"device": 0},
        {"dtype": "float64"}, {"dtype": np.float32}, {"pool": "mean"}, {"output_stride": 0}, {"output_stride": True},
        {"output_stride": 8.0}, {"grad": 1, "array": "native"}, {"grad": True}, {"array": "torch"}, {"options": None},
        {"options": [("a", 1)]}, {"options": "a"}, {"options": {1: "a"}}, {"options": {"a": {2: 3}}},
        {"options": {"a": float("nan")}}, {"options": {"a": {1, 2}}}, {"options": {"a": object()}},
        {"options": {"a": np.float32(1)}},
    ],
)  # fmt: skip
def test_fields_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        request(**fields)
    assert caught.value.got


def test_options_that_hold_themselves() -> None:
    options: dict[str, Any] = {}
    options["self"] = options
    with pytest.raises(SpecError, match="options"):
        request(options=options)


def test_weights_may_be_a_path() -> None:
    from pathlib import Path

    assert request(weights=Path("a") / "b.safetensors").weights == str(Path("a/b.safetensors"))


def test_options_are_frozen_all_the_way_down() -> None:
    inner = [1, {"deep": [2]}]
    made = request(options={"outer": inner})
    before = hash(made)
    inner.append(3)
    inner[1]["deep"].append(4)  # type: ignore[index]
    assert thaw(made.options) == {"outer": [1, {"deep": [2]}]}
    assert hash(made) == before
    with pytest.raises(TypeError):
        made.options["outer"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        made.options["outer"][0] = 1
    with pytest.raises(TypeError):
        made.options["outer"][1]["deep"] = 1


def test_order_of_names_does_not_count_and_order_of_layers_does() -> None:
    one = request(options={"a": 1, "b": {"c": 1, "d": 2}})
    two = request(options={"b": {"d": 2, "c": 1}, "a": 1})
    assert one == two
    assert hash(one) == hash(two)
    assert request(layers=["C2", "C5"]) != request(layers=["C5", "C2"])
    assert request(options={"a": 1}) != request(options={"a": True})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
requests = st.builds(
    ExtractionRequest,
    model=st.text(min_size=1, max_size=9),
    layers=st.lists(st.text(min_size=1, max_size=4) | st.integers(-3, 9), min_size=1, max_size=4, unique=True),
    weights=st.none() | st.text(min_size=1, max_size=5),
    pool=st.sampled_from([None, "avg", "gem=2.5", "avgpool=3x2,1,1", "adaptive_avgpool=2"]),
    flatten=st.booleans(),
    output_stride=st.none() | st.integers(1, 64),
    grad=st.booleans(),
    array=st.just("native"),
    options=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)


@given(requests)
def test_request_survives_pickling_copying_and_evolving(made: ExtractionRequest) -> None:
    for again in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made), attrs.evolve(made)):
        assert again == made
        assert hash(again) == hash(made)
        assert again.layers == made.layers
        assert json.dumps(thaw(again.options)) == json.dumps(thaw(made.options))


@pytest.mark.parametrize(
    ("given_", "pools"),
    [
        (None, {}),
        ({}, {}),
        ({"C2": None}, {}),
        ("gem", {"C2": Pool("gem"), -1: Pool("gem"), "x": Pool("gem")}),
        (Pool("avg"), {"C2": Pool("avg"), -1: Pool("avg"), "x": Pool("avg")}),
        ({"x": "cls", "C2": Pool("avgpool", 2)}, {"C2": Pool("avgpool", 2), "x": Pool("cls")}),
        ([(np.int64(-1), "max")], {-1: Pool("max")}),
    ],
)
def test_pools(given_: Any, pools: dict[str | int, Pool]) -> None:
    made = request(layers=["C2", -1, "x"], pool=given_)
    assert list(made.pools.items()) == list(pools.items())
    assert pickle.loads(pickle.dumps(made)) == made == attrs.evolve(made)


def test_the_order_of_poolings_does_not_count() -> None:
    one, two = (
        request(layers=["C2", 0], pool=pool) for pool in ({"C2": "avg", 0: "gem"}, [(0, Pool("gem")), ("C2", "avg")])
    )
    assert one == two
    assert hash(one) == hash(two)
    assert one != request(layers=["C2", 0], pool={"C2": "avg", 0: "gem=4"})
    assert request(pool="gem") != request(pool="gem", flatten=True)


@pytest.mark.parametrize(
    "pool", ["mean", "", 3, True, b"avg", ["avg"], [("C2",)], {"C2": 3}, {"C2": "mean"}, object(), {"avg"}, iter(())]
)
def test_pools_refused(pool: Any) -> None:
    with pytest.raises(SpecError):
        request(layers=["C2", 0], pool=pool)


@pytest.mark.parametrize("pool", [{"C3": "avg"}, {"0": "avg"}, {False: "avg"}, [("C2", "avg"), ("C2", "max")]])
def test_pools_of_other_layers_are_refused(pool: Any) -> None:
    with pytest.raises(LayerError):
        request(layers=["C2", 0], pool=pool)


@given(requests, st.sampled_from(["model", "weights", "device"]))
def test_another_value_is_another_request(made: ExtractionRequest, field: str) -> None:
    other: dict[str, Any] = {field: "something else entirely"}
    assert attrs.evolve(made, **other) != made


def test_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request().model = "other"  # type: ignore[misc]


def test_no_shape_is_predicted_for_a_size_that_the_model_does_not_take() -> None:
    rule = InputRule(fixed=(224, 224))
    feature = FeatureInfo("blocks.11", 768, 16, "map", level="C4")
    info = ModelInfo("timm", "vit", (224, 224), [feature], Preprocess(None, None, (0, 0, 0), (1, 1, 1)), rule)
    assert info.resolve("C4").shape(8, 224, 224) == (8, 768, 14, 14)
    with pytest.raises(InputError, match="does not take images of this size"):
        info.resolve("C4").shape(8, 300, 300)


@pytest.mark.parametrize("numbers", [(8, "a", 3), (8, 224.0, 224), (True, 8, 8), (-1, 8, 8)])
def test_shapes_are_asked_for_by_whole_numbers(numbers: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="whole numbers"):
        FeatureInfo("x", 3, 2, "map").shape(*numbers)


def test_tokens_that_are_no_patches_are_as_many_at_every_size() -> None:
    feature = FeatureInfo("transformer.resblocks.11", 512, None, "tokens", length=77, input_rule=InputRule((224, 224)))
    assert feature.shape(2, 224, 224) == feature.shape(2, 1, 7) == (2, 77, 512)
    with pytest.raises(SpecError, match="no grid"):
        feature.grid(224, 224)
    for wrong in ({"reduction": 16}, {"kind": "map"}, {"kind": "vector"}, {"length": 0}, {"length": None}):
        with pytest.raises(SpecError):
            attrs.evolve(feature, **wrong)
