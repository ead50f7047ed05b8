from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featreg import errors
from featreg.shapes import describe_output

SIZE = (224, 224)
PERIOD = 32
PROBES = (SIZE, (32, 64), (33, 63))


def window(side: int, kernel: int, stride: int, padding: int) -> int:
    """The output side of a convolution or a pooling (the textbook formula)."""
    return (side + padding - kernel) // stride + 1


def chain(side: int, layers: list[tuple[int, int, int]]) -> int:
    for kernel, stride, padding in layers:
        side = window(side, kernel, stride, padding)
    return side


@st.composite
def layers(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """A chain of windows whose paddings leave at least floor(side / stride) positions, up to a total stride of 32."""
    strides = draw(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=5))
    kernels = [draw(st.integers(stride, 7)) for stride in strides]
    return [(k, s, draw(st.integers(k - s, k - 1))) for k, s in zip(kernels, strides, strict=True)]


@given(chosen=layers(), height=st.integers(32, 400), width=st.integers(32, 400))
def test_a_formula_found_at_three_sizes_holds_at_every_size(
    chosen: list[tuple[int, int, int]], height: int, width: int
) -> None:
    shapes = {at: (1, 5, chain(at[0], chosen), chain(at[1], chosen)) for at in PROBES}
    feature = describe_output("cell", shapes, SIZE, PERIOD).feature

    total = 1
    for _, stride, _ in chosen:
        total *= stride
    assert feature.reduction == total
    if feature.rounding == "measured":
        assert feature.shape(2, *SIZE) == (2, *shapes[SIZE][1:])
        with pytest.raises(errors.InputError):
            feature.shape(1, 500, 500)
    else:
        assert feature.shape(2, height, width) == (2, 5, chain(height, chosen), chain(width, chosen))


@given(stride=st.sampled_from([2, 4, 8, 16, 32]), constant=st.integers(0, 31))
def test_only_the_exact_roundings_get_a_formula(stride: int, constant: int) -> None:
    shapes = {at: (1, 5, *((side + constant % stride) // stride for side in at)) for at in PROBES}
    feature = describe_output("cell", shapes, SIZE, PERIOD).feature
    expected = {0: "floor", stride - 1: "ceil"}.get(constant % stride, "measured")
    assert feature.rounding == expected
    assert feature.reduction == stride


def test_a_globally_pooled_map_promises_no_growth() -> None:
    feature = describe_output("pool", dict.fromkeys(PROBES, (1, 8, 1, 1)), SIZE, PERIOD).feature
    assert feature.rounding == "measured"
    assert feature.shape(3, *SIZE) == (3, 8, 1, 1)


def test_a_map_of_one_position_is_a_vector_where_that_is_asked_for() -> None:
    described = describe_output("pool", dict.fromkeys(PROBES, (1, 8, 1, 1)), SIZE, PERIOD, as_vector=True)
    assert described.form == "one position"
    assert (described.feature.kind, described.feature.shape(3, *SIZE)) == ("vector", (3, 8))


def test_a_map_that_grows_is_no_vector() -> None:
    shapes = {at: (1, 8, at[0] // 224 or 1, 1) for at in (SIZE, (448, 448))}
    assert describe_output("pool", shapes, SIZE, 224, as_vector=True).feature.kind == "map"


@pytest.mark.parametrize(("prefix", "stride"), [(0, 32), (1, 16), (2, 16), (5, 14)])
def test_tokens_of_a_network_of_one_size(prefix: int, stride: int) -> None:
    tokens = (224 // stride) ** 2 + prefix
    feature = describe_output("norm", {SIZE: (1, tokens, 192)}, SIZE, None).feature
    assert (feature.kind, feature.prefix_tokens, feature.reduction) == ("tokens", prefix, stride)
    assert feature.shape(4, *SIZE) == (4, tokens, 192)


def test_channels_on_the_last_axis_are_recognised_where_the_size_varies() -> None:
    shapes = {at: (1, at[0] // 4, at[1] // 4, 96) for at in PROBES}
    described = describe_output("mlp", shapes, SIZE, PERIOD)
    assert described.form == "channels last"
    assert described.feature.shape(1, 64, 128) == (1, 96, 16, 32)


def test_channels_on_the_last_axis_are_recognised_at_one_size() -> None:
    described = describe_output("norm", {SIZE: (1, 56, 56, 96)}, SIZE, None)
    assert described.form == "channels last"
    assert (described.feature.channels, described.feature.reduction) == (96, 4)


@pytest.mark.parametrize(
    "shape",
    [None, (64, 49, 96), (1,), (1, 2, 3, 4, 5), (1, 1000, 7)],
    ids=["tuple", "windows", "1-D", "5-D", "no grid"],
)
def test_what_is_no_feature_is_refused(shape: tuple[int, ...] | None) -> None:
    with pytest.raises(errors.CapabilityError, match="'cell'"):
        describe_output("cell", {SIZE: shape}, SIZE, None)


def test_an_attention_matrix_is_no_map() -> None:
    shapes = {at: (1, at[0] * at[1] // 256, at[1], at[0] * at[1] // 256) for at in PROBES}
    with pytest.raises(errors.CapabilityError):
        describe_output("softmax", shapes, SIZE, PERIOD)
