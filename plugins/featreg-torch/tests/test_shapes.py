"""Shapes decided from a few probes on the meta device equal those of real forward passes at every size."""

import functools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from featreg.plugin import InputRule, errors
from featreg_torch.blueprint import Blueprint, Plan
from featreg_torch.rules import find_input_rule
from featreg_torch.shapes import PROBES, aligned_sizes, build_on_meta, probe, read_shapes
from featreg_torch.taps import Glance, HookTaps, Outlet

LAYERS = {
    "conv3": lambda: nn.Conv2d(3, 3, 3, stride=2, padding=1),  # ceil
    "patch2": lambda: nn.Conv2d(3, 3, 2, stride=2),  # floor
    "pool": lambda: nn.MaxPool2d(2, 2),  # floor
    "pool_ceil": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),  # ceil
    "conv7": lambda: nn.Conv2d(3, 3, 7, stride=2, padding=3),  # ceil
    "same": lambda: nn.Conv2d(3, 3, 3, padding=1),
    "valid": lambda: nn.Conv2d(3, 3, 3),  # neither
    "patch4": lambda: nn.Conv2d(3, 3, 4, stride=4),  # floor
}
STRIDES = {"conv3": 2, "patch2": 2, "pool": 2, "pool_ceil": 2, "conv7": 2, "same": 1, "valid": 1, "patch4": 4}


def run(network, images, wanted):
    yield "output", network(images)


hooked = functools.partial(HookTaps, run=run)


def describe(network, source, native=(192, 192), **outlet):
    taps = HookTaps(network, [source], [Glance()], run=run)
    rule, seen = find_input_rule(taps, native)
    shapes = {size: found[0] for size, found in seen.items()}
    return rule, read_shapes(Outlet(source, **outlet), native, shapes)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
)
def test_formula_equals_real_forward_at_any_size_or_is_measured(names, height, width):
    assume(math.prod(STRIDES[name] for name in names) <= 64)
    build = lambda: nn.Sequential(*(LAYERS[name]() for name in names))  # noqa: E731
    rule, (info, stored) = describe(build_on_meta(build), "output")
    assert (rule.fixed, rule.multiple_of, stored) == (None, 1, "nchw")
    try:
        real = build()(torch.zeros(2, 3, height, width)).shape
    except RuntimeError:
        real = None
    assert takes(rule, height, width) == (real is not None)
    if info.rounding == "measured":
        with pytest.raises(errors.InputError):
            info.shape(2, 1000003, 17)
    elif real is not None:
        assert info.shape(2, height, width) == tuple(real)


def takes(rule, height, width):
    try:
        rule.check(height, width)
    except errors.InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("names", "rounding", "reduction"),
    [
        (["conv3", "conv7"], "ceil", 4),
        (["patch4", "pool"], "floor", 8),
        (["pool_ceil"], "ceil", 2),
        (["conv3", "pool"], "measured", 4),
        (["valid", "pool"], "measured", 2),
    ],
)
def test_roundings_are_told_apart(names, rounding, reduction):
    _, (info, _) = describe(build_on_meta(lambda: nn.Sequential(*(LAYERS[name]() for name in names))), "output")
    assert (info.rounding, info.reduction) == (rounding, reduction)


def test_a_stride_beyond_the_probes_is_measured():
    _, (info, _) = describe(build_on_meta(lambda: nn.Sequential(*(LAYERS["conv3"]() for _ in range(7)))), "output")
    assert info.rounding == "measured"
    assert info.shape(2, 256, 320) == (2, 3, 2, 3)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)

    def forward(self, images):
        return self.conv(images).permute(0, 2, 3, 1)


def test_channels_last_maps_are_recognised():
    _, (info, stored) = describe(build_on_meta(ChannelsLast), "output")
    assert (stored, info.channels, info.reduction, info.rounding) == ("nhwc", 5, 4, "floor")


class FixedSize(nn.Module):
    """A patch embedding with a class token, for 32x32 only."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, stride=8)
        self.position = nn.Parameter(torch.zeros(1, 17, 6))

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :1], tokens], dim=1) + self.position


def test_fixed_size_networks_get_a_fixed_rule_and_token_grids():
    rule, (tokens, stored) = describe(
        build_on_meta(FixedSize), "output", native=(32, 32), prefix_tokens=1, strides=(4, 8)
    )
    assert rule.fixed == (32, 32)
    assert (stored, tokens.kind, tokens.shape(3, 32, 32)) == ("nld", "tokens", (3, 17, 6))
    _, (grid, _) = describe(
        build_on_meta(FixedSize), "output", native=(32, 32), prefix_tokens=1, kind="map", reduction=8
    )
    assert grid.shape(3, 32, 32) == (3, 6, 4, 4)


def test_wrong_prefix_and_windows_are_refused():
    with pytest.raises(errors.CapabilityError, match="no grid"):
        describe(build_on_meta(FixedSize), "output", native=(32, 32), prefix_tokens=0, strides=(4, 8))

    class Windows(nn.Module):
        def forward(self, images):
            return images.reshape(-1, 4, 3)  # the batch is folded into windows

    with pytest.raises(errors.CapabilityError):
        describe(build_on_meta(Windows), "output", native=(32, 32))


def test_padding_that_differs_between_the_axes_is_measured():
    _, (info, _) = describe(build_on_meta(lambda: nn.Conv2d(3, 3, 4, 4, padding=(1, 0))), "output")
    assert info.rounding == "measured"


class Fixed(nn.Module):
    """Whatever it makes of 32x32 pixels, and nothing else."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        assert images.shape[2:] == (32, 32)
        return self.make(images)


@pytest.mark.parametrize(
    ("make", "stored"),
    [
        (lambda images: images[:, :, ::4, ::4], "nchw"),
        (lambda images: images[:, :, ::4, ::4].permute(0, 2, 3, 1), "nhwc"),
        (lambda images: images.mean((2, 3), keepdim=True), "nchw"),
    ],
)
def test_at_one_size_the_grid_tells_the_layout(make, stored):
    _, (info, found) = describe(build_on_meta(lambda: Fixed(make)), "output", native=(32, 32))
    assert (found, info.channels) == (stored, 3)


@pytest.mark.parametrize("size", [(65, 97), (224, 225), (63, 95)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_at_one_odd_size_cells_that_nearly_cover_it_tell_the_layout(size, stride):
    class Odd(nn.Module):
        def forward(self, images):
            assert images.shape[2:] == size
            return nn.functional.avg_pool2d(images, stride).repeat(1, 3, 1, 1)

    _, (info, stored) = describe(build_on_meta(Odd), "output", native=size)
    assert (stored, info.reduction) == ("nchw", stride)
    assert info.shape(1, *size) == (1, 9, size[0] // stride, size[1] // stride)


def test_at_one_size_attention_of_tokens_by_tokens_is_no_map():
    weights = build_on_meta(lambda: Fixed(lambda images: images.new_empty(2, 3, 25, 25)))
    with pytest.raises(errors.CapabilityError, match="no grid"):
        describe(weights, "output", native=(32, 32))


def test_at_one_size_what_is_no_grid_is_no_map():
    heads = build_on_meta(lambda: Fixed(lambda images: images.new_empty(2, 3, 17, 64)))
    with pytest.raises(errors.CapabilityError, match="no grid"):  # attention heads, say
        describe(heads, "output", native=(32, 32))


class Attention(nn.Module):
    """Patches of 8 pixels as (N, heads, L, d), or as (N, heads, L, L)."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, images):
        keys = nn.functional.avg_pool2d(images, 8).flatten(2).unsqueeze(3)
        return keys @ keys.transpose(2, 3) if self.weights else keys.expand(-1, -1, -1, 16)


@pytest.mark.parametrize("weights", [False, True])
def test_what_follows_the_size_along_one_axis_or_along_both_alike_is_no_map(weights):
    with pytest.raises(errors.CapabilityError, match="no grid"):
        describe(build_on_meta(lambda: Attention(weights)), "output")


class Cube(nn.Module):
    """A stem whose maps have as many channels as rows and columns, for 32x32 only; and one that divides nothing."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.Conv2d(16, 5, 4), nn.BatchNorm2d(5))
        self.position = nn.Parameter(torch.zeros(5, 13, 13))
        self.twin = nn.Identity()

    def forward(self, images):
        return self.twin((self.last(self.stem(images)) + self.position).permute(0, 2, 3, 1))


def test_at_one_size_what_a_convolution_or_a_norm_made_is_channels_first():
    network = build_on_meta(Cube)
    names = [name for name, _ in network.named_modules() if name]
    blueprint = Blueprint(network, Plan([], names, hooked), (32, 32))
    shapes = {node.name: node.shape for node in blueprint.nodes()}
    assert shapes == {
        **dict.fromkeys(("stem", "stem.0", "stem.1"), (16, 16, 16)),
        **dict.fromkeys(("last", "last.0", "last.1"), (5, 13, 13)),
        "twin": None,
    }


class Lookup(nn.Module):
    """Patches of 8 pixels with a row of a table for each along one axis; ``rows`` says which, ``table`` of what."""

    def __init__(self, rows, table=lambda table, length: table):
        super().__init__()
        self.rows, self.table = rows, table
        self.positions = nn.Parameter(torch.zeros(2 * 8 - 1, 3))

    def forward(self, images):
        patches = nn.functional.avg_pool2d(images, 8)
        length = patches.shape[2]
        rows = self.table(self.positions, length)[self.rows(length).to(images.device)]
        return patches + rows.sum().reshape(1, 1, 1, 1)


def distances(length):
    places = torch.arange(length)
    return places[:, None] - places[None] + length - 1


def resized(table, length):
    return nn.functional.interpolate(table.T[None], 2 * length - 1, mode="linear")[0].T


def test_more_rows_of_a_table_than_at_the_native_size_are_not_taken_for_granted():
    build = lambda: Lookup(distances)  # noqa: E731
    with pytest.raises(IndexError):
        build()(torch.zeros(1, 3, 72, 72))
    rule, _ = describe(build_on_meta(build), "output", native=(64, 64))
    assert rule == InputRule(fixed=(64, 64))


@pytest.mark.parametrize(
    "build",
    [lambda: Lookup(distances, resized), lambda: Lookup(lambda _: distances(7))],
    ids=["table resized", "window"],
)
@pytest.mark.parametrize("side", [8, 40, 264])
def test_a_table_that_is_resized_and_the_index_of_a_window_bound_no_size(build, side):
    rule, (info, _) = describe(build_on_meta(build), "output", native=(64, 64))
    assert rule == InputRule(multiple_of=1, minimum=(8, 8))
    assert info.shape(1, side, side) == tuple(build()(torch.zeros(1, 3, side, side)).shape)


class Heads(nn.Module):
    """A batch of token sequences, and a bias of as many heads as there are images in a probe."""

    def __init__(self):
        super().__init__()
        self.tokens, self.bias = nn.Identity(), nn.Identity()
        self.table = nn.Parameter(torch.zeros(2, 16, 16))

    def forward(self, images):
        tokens = self.tokens(nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2))
        return tokens + self.bias(self.table)[0, :, :3]


def test_what_is_as_long_as_the_batch_by_chance_is_no_feature():
    network = build_on_meta(Heads)
    plan = Plan([Outlet("tokens", head="features", kind="map", reduction=8)], ["tokens", "bias"], hooked)
    blueprint = Blueprint(network, plan, (32, 32))
    assert {node.name: node.shape for node in blueprint.nodes()} == {"tokens": (16, 3), "bias": None}
    with pytest.raises(errors.CapabilityError, match="no output per image"):
        blueprint.read([Outlet("bias", strides=(8,))])


def test_an_interruption_is_not_a_refusal_of_the_size():
    class Interrupted(nn.Module):
        calls = 0

        def forward(self, images):
            Interrupted.calls += 1
            if Interrupted.calls > 1:
                raise KeyboardInterrupt
            return images

    with pytest.raises(KeyboardInterrupt):
        describe(build_on_meta(Interrupted), "output")


class Patches(nn.Module):
    """Tokens of 14-pixel patches, a stride that does not divide the probes' period."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 14, stride=14)

    def forward(self, images):
        return self.patch(images).flatten(2).transpose(1, 2)


def test_token_grids_without_a_proof_are_measured():
    _, (info, _) = describe(build_on_meta(Patches), "output", native=(224, 224), strides=(14,))
    assert (info.reduction, info.rounding) == (14, "measured")
    assert info.shape(1, 224, 224) == (1, 256, 6)
    with pytest.raises(errors.InputError):
        info.shape(1, 1001, 999)


class Multiples(nn.Module):
    def forward(self, images):
        if images.shape[2] % 16 or images.shape[3] % 16:
            raise ValueError("multiples of 16 only")
        return nn.functional.avg_pool2d(images, 16)


def test_multiples_are_found():
    rule, (info, _) = describe(build_on_meta(Multiples), "output", native=(64, 64))
    assert rule == InputRule(multiple_of=16)
    assert info.shape(1, 48, 80) == (1, 3, 3, 5)


class Windows(nn.Module):
    """Patches of 14 pixels in windows of 2x2, for at least three windows a side."""

    def forward(self, images):
        sides = images.shape[2:]
        assert all(side % 28 == 0 and side >= 84 for side in sides)
        return nn.functional.avg_pool2d(images, 14)


def test_multiples_that_are_no_power_of_two_and_a_minimum():
    rule, (info, _) = describe(build_on_meta(Windows), "output", native=(224, 224))
    assert rule == InputRule(multiple_of=28, minimum=(84, 84))
    assert (info.reduction, info.rounding) == (14, "ceil")
    assert info.shape(1, 84, 196) == (1, 3, 6, 14)


class Resizes(nn.Module):
    def forward(self, images):
        return nn.functional.avg_pool2d(nn.functional.interpolate(images, (32, 32)), 8)


def test_a_network_that_scales_its_input_takes_one_size():
    rule, (info, _) = describe(build_on_meta(Resizes), "output", native=(32, 32))
    assert rule == InputRule(fixed=(32, 32))
    assert info.shape(1, 32, 32) == (1, 3, 4, 4)


@pytest.mark.parametrize("multiple", [1, 14, 32, 48, 224])
def test_aligned_sizes_are_multiples_around_a_common_period(multiple):
    first, second, more, less = aligned_sizes(multiple)
    period = first[1] - first[0]
    assert all(side % period == 0 for side in (*first, *second))
    assert (second[0] - first[0], second[1] - first[1]) == (2 * period, -period)
    assert period % 64 == period % multiple == 0
    assert more == (first[0] + multiple, first[1] - multiple)
    assert less == (first[0] - multiple, first[1] + multiple)


class NeedsNumbers(nn.Module):
    """Its constructor reads a tensor's value, as torchvision's RegNet does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, int(torch.tensor([4.0]).item()), 3)

    def forward(self, images):
        return self.conv(images)


def test_constructors_that_need_real_numbers_are_built_on_the_cpu_first():
    network = build_on_meta(NeedsNumbers)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert not network.training


def test_building_leaves_random_numbers_and_defaults_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    try:
        network = build_on_meta(NeedsNumbers)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(1), expected)
    assert network.conv.weight.dtype == torch.float32


def test_probes_are_what_the_proof_needs():
    (first, second, *odd) = PROBES
    assert all(side % 64 == 0 for side in (*first, *second))
    assert odd == [(first[0] + 1, first[1] - 1), (first[0] - 1, first[1] + 1)]
    taps = HookTaps(build_on_meta(LAYERS["conv3"]), ["output"], [Glance()], run=run)
    assert probe(taps, (9, 11)) == [(2, 3, 5, 6)]
