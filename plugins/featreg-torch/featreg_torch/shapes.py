"""Exact shapes without data: a network on torch's meta device is run at a few sizes.

Along one axis a grid side is a non-decreasing function f of the image side with f(n + R) = f(n) + R / r for every
common multiple R of the strides (a composition of floor((n + a) / s) + b). So with f(kR) = kR / r, one more pixel
decides ``ceil`` for all sizes (f(kR + 1) = kR / r + 1 bounds every larger remainder from below) and one pixel less
decides ``floor`` (f(kR - 1) = kR / r - 1 bounds every smaller one from above). Where neither holds the grid is
``measured``. Both axes are tried both ways, since padding may differ between them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs
import torch
from torch import nn

from featreg.plugin import FeatureInfo, MeasuredGrid, Size, errors
from featreg_torch.quick import QuickShapes
from featreg_torch.state import factory_defaults, seeded
from featreg_torch.taps import Outlet, Stored

__all__ = [
    "BATCH",
    "PROBES",
    "Shape",
    "Shapes",
    "aligned_sizes",
    "build_on_meta",
    "channels_first",
    "check_batch",
    "glance",
    "probe",
    "read_shapes",
]

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[Size, Sequence[Shape]]

_ROUNDINGS: tuple[Literal["ceil", "floor"], ...] = ("ceil", "floor")

BATCH = 2
"""Probes hold two images, so that a first axis that is not the batch shows."""

_CHANNELS_FIRST = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
)
"""Modules whose images are (N, C, H, W) by definition."""

_PERIOD = 64
_LARGE = 256


def aligned_sizes(multiple: int) -> tuple[Size, ...]:
    """The sizes that decide every shape of a network whose image sides are multiples of a number.

    The first two are multiples of the period R, a common multiple of ``multiple`` and of the usual strides; the others
    are one step more and less.
    """
    period = math.lcm(_PERIOD, multiple)
    side = period * math.ceil(_LARGE / period)
    return (
        (side, side + period),
        (side + 2 * period, side),
        (side + multiple, side + period - multiple),
        (side - multiple, side + period + multiple),
    )


PROBES = aligned_sizes(1)


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory, in evaluation mode; by way of the CPU where its constructor needs real numbers."""
    with seeded():
        try:
            with factory_defaults("meta"), QuickShapes():
                return build().eval()
        except (NotImplementedError, RuntimeError):
            with factory_defaults("cpu"):
                return build().eval().to("meta")


def probe(taps: nn.Module, size: Size, channels: int = 3, batch: int = BATCH) -> list[Shape | None]:
    """The shapes of every tap for a batch of images of one size, None where that is no tensor.

    Whatever the network raises at this size goes through.
    """
    return [None if output is None else tuple(output.shape) for output in glance(taps, size, channels, batch)]


def glance(taps: nn.Module, size: Size, channels: int = 3, batch: int = BATCH) -> Sequence[torch.Tensor | None]:
    """What every tap gives on the meta device for a batch of images of one size, as :func:`probe`."""
    with torch.no_grad(), factory_defaults("meta"), QuickShapes():
        outputs: Sequence[torch.Tensor | None] = taps(torch.empty(batch, channels, *size, device="meta"))
    return outputs


def check_batch(outlet: Outlet, stored: Stored, few: Shape | None, more: Shape | None) -> None:
    """Raise CapabilityError unless ``few``, of ``BATCH`` images, and ``more``, of one more, are alike per image.

    As many heads or windows as images look like a batch; another number of images tells.
    """
    axis = 1 if stored == "lnd" else 0
    if few is None or more is None or more != (*few[:axis], few[axis] + 1, *few[axis + 1 :]):
        raise errors.CapabilityError(
            f"{outlet.source!r} gives no output per image",
            "an axis as long as the batch",
            f"{few} for {BATCH} images, {more} for {BATCH + 1}",
        )


def channels_first(network: nn.Module, outputs: Mapping[str, torch.Tensor | None]) -> frozenset[str]:
    """The names whose 4-D output is (N, C, H, W) by definition: a convolution's, say, and of those who hand that on.

    ``outputs`` are those of one run, by name; what hands a tensor on gives the very same one.
    """
    modules = dict(network.named_modules())
    images = {name: output for name, output in outputs.items() if output is not None and output.ndim == 4}
    known = {id(output) for name, output in images.items() if isinstance(modules.get(name), _CHANNELS_FIRST)}
    return frozenset(name for name, output in images.items() if id(output) in known)


def read_shapes(outlet: Outlet, native: Size, seen: Mapping[Size, Shape | None]) -> tuple[FeatureInfo, Stored]:
    """What an outlet's shapes at several sizes say of it; CapabilityError where no kind of feature fits."""
    shapes = {size: shape for size, shape in seen.items() if shape is not None}
    if len(shapes) < len(seen):
        raise errors.CapabilityError(
            f"{outlet.source!r} gives no feature: it does not run in the forward pass, or returns more than one tensor",
            "a module or node that runs in evaluation mode and returns one tensor",
        )
    ranks = {len(shape) for shape in shapes.values()}
    batches = {shape[0] for shape in shapes.values()}
    if ranks == {2} and batches == {BATCH} and outlet.kind in (None, "vector"):
        return _info(outlet, shapes[native][1], None, "vector"), "nd"
    if ranks == {3} and outlet.sequence and len(set(shapes.values())) == 1 and batches == {BATCH}:
        _, length, channels = shapes[native]
        return _info(outlet, channels, None, "tokens", length), "nld"
    if (
        ranks == {3}
        and not outlet.sequence
        and (outlet.kind in (None, "tokens") or (outlet.kind == "map" and outlet.reduction))
    ):
        return _read_tokens(outlet, native, shapes)
    if ranks == {4} and batches == {BATCH} and outlet.kind in (None, "map"):
        return _read_map(outlet, native, shapes)
    raise errors.CapabilityError(
        f"{outlet.source!r} returns no {outlet.kind or 'map, tokens or vector'} per image",
        "(N, C, H, W), (N, L, D) or (N, D)",
        f"{shapes[native]} for {BATCH} images of {native[0]}x{native[1]}",
    )


def _read_map(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> tuple[FeatureInfo, Stored]:
    stored = outlet.stored or _map_layout(outlet, native, shapes)
    last = stored == "nhwc"
    grids = {size: (shape[1], shape[2]) if last else (shape[2], shape[3]) for size, shape in shapes.items()}
    channels = shapes[native][3 if last else 1]
    _check_grid(outlet, shapes, grids)
    if any(shape[3 if last else 1] != channels for shape in shapes.values()):
        raise errors.CapabilityError(
            f"the channels of {outlet.source!r} follow the image's size", f"{channels} at every size", str(shapes)
        )
    return _with_grid(_info(outlet, channels, _stride(native, grids, outlet.reduction), "map"), grids), stored


def _check_grid(outlet: Outlet, shapes: Mapping[Size, Shape], grids: Mapping[Size, Size]) -> None:
    """Raise CapabilityError where one axis follows the size (tokens of each head), or both alike (tokens by tokens)."""
    aligned = _aligned(shapes)
    if aligned is None:
        return
    first, second = (shapes[size] for size in aligned)
    following = sum(one != other for one, other in zip(first, second, strict=True))
    if following == 1 or (following and all(rows == columns for rows, columns in map(grids.__getitem__, aligned))):
        raise errors.CapabilityError(
            f"the output of {outlet.source!r} is no grid of the image",
            "rows and columns that follow the image's height and width",
            f"{first} and {second} for images of {aligned[0]} and {aligned[1]}",
        )


def _map_layout(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> Stored:
    """Channels are the axis that the image size does not change; at one size alone, the one that is no grid side."""
    seen = list(shapes.values())
    if len(seen) > 1:
        fixed = [len({shape[axis] for shape in seen}) == 1 for axis in range(4)]
        return "nhwc" if fixed[3] and not fixed[1] else "nchw"
    (shape,) = seen
    layouts: tuple[tuple[Stored, Size, int], ...] = (("nchw", shape[2:], shape[1]), ("nhwc", shape[1:3], shape[3]))  # type: ignore[assignment]
    fitting: list[tuple[Stored, int]] = []
    for covers in (_covers, _nearly_covers):
        fitting = fitting or [(stored, channels) for stored, grid, channels in layouts if covers(native, grid)]
    if len(fitting) > 1 and outlet.channels is not None:
        fitting = [entry for entry in fitting if entry[1] == outlet.channels]
    if len(fitting) == 1:
        return fitting[0][0]
    raise errors.CapabilityError(
        f"the output of {outlet.source!r} is no grid of the image", "(N, C, H, W) or (N, H, W, C)", str(shape)
    )


def _covers(native: Size, grid: Size) -> bool:
    """Whether square cells in rows and columns cover an image."""
    return native[0] % grid[0] == 0 and native[1] % grid[1] == 0 and native[0] // grid[0] == native[1] // grid[1]


def _nearly_covers(native: Size, grid: Size) -> bool:
    """Whether cells of a power of two do, up to a part of one that is left over or added at the end of an axis.

    Any other number would let the tokens by tokens of attention pass: 25 of them cover 224 pixels, 9 each, nearly.
    """
    rows, columns = native
    return any(
        grid in ((rows // side, columns // side), (-(-rows // side), -(-columns // side)))
        for side in (2**power for power in range(max(native).bit_length()))
    )


def _read_tokens(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> tuple[FeatureInfo, Stored]:
    stored = outlet.stored or "nld"
    batch_axis, length_axis = (1, 0) if stored == "lnd" else (0, 1)
    lengths = {size: shape[length_axis] - outlet.prefix_tokens for size, shape in shapes.items()}
    kind: Literal["map", "tokens"] = "map" if outlet.kind == "map" else "tokens"
    whole = all(shape[batch_axis] == BATCH for shape in shapes.values())
    reductions = (outlet.reduction,) if outlet.reduction else outlet.strides
    for reduction, rounding in itertools.product(reductions if whole else (), _ROUNDINGS):
        info = attrs.evolve(_info(outlet, shapes[native][2], reduction, kind), rounding=rounding)
        grids = {size: grid for size in lengths if (grid := _grid_or_none(info, size)) is not None}
        if all(size in grids and grids[size][0] * grids[size][1] == length for size, length in lengths.items()):
            return _with_grid(info, grids), stored
    for reduction, grid in outlet.grids if whole and len(shapes) == 1 else ():
        if grid[0] * grid[1] == lengths[native]:
            return _with_grid(_info(outlet, shapes[native][2], reduction, kind), {native: grid}), stored
    raise errors.CapabilityError(
        f"the tokens of {outlet.source!r} form no grid of the image",
        "one row of tokens per image: prefix tokens, then one token per patch",
        f"{shapes[native]} for {BATCH} images of {native[0]}x{native[1]}",
    )


def _info(
    outlet: Outlet,
    channels: int,
    reduction: int | None,
    kind: Literal["map", "tokens", "vector"],
    length: int | None = None,
) -> FeatureInfo:
    return FeatureInfo(
        outlet.source,
        channels,
        reduction,
        kind,
        outlet.level,
        outlet.index,
        outlet.head,
        outlet.prefix_tokens if kind == "tokens" and length is None else 0,
        length=length,
    )


def _stride(native: Size, grids: Mapping[Size, Size], declared: int | None = None) -> int:
    """The stride in pixels: by how much the image must grow for one more cell, else how many pixels a cell covers.

    At one size alone the stride that is ``declared`` counts where it gives these cells: 64 for LeViT's 4 cells at 224.
    Where cells do not fill the image it is the nearest power of two: 128 for the 7 cells of a pyramid's P7 at 800.
    """
    aligned = _aligned(grids)
    if aligned is not None:
        first, second = aligned
        period = first[1] - first[0]
        cells = grids[first][1] - grids[first][0]  # for one period more
        if cells > 0 and period % cells == 0 and grids[second][0] - grids[first][0] == 2 * cells:
            return period // cells
    if declared and grids[native] == (-(-native[0] // declared), -(-native[1] // declared)):
        return declared
    pixels = native[0] / grids[native][0]
    return max(1, round(pixels if native[0] % grids[native][0] == 0 else 2 ** round(math.log2(pixels))))


def _aligned(sizes: Collection[Size]) -> tuple[Size, Size] | None:
    """The first two of :func:`aligned_sizes` where they are among ``sizes``."""
    for side, wide in sizes:
        period = wide - side
        if period > 0 and period % _PERIOD == side % period == 0 and (side + 2 * period, side) in sizes:
            return (side, wide), (side + 2 * period, side)
    return None


def _with_grid(info: FeatureInfo, grids: Mapping[Size, Size]) -> FeatureInfo:
    aligned = _aligned(grids)
    period = aligned[0][1] - aligned[0][0] if aligned else None
    proven = len(grids) == 1 or (period is not None and period % (info.reduction or period) == 0)  # a divisor of R
    for rounding in _ROUNDINGS if proven else ():
        guess = attrs.evolve(info, rounding=rounding)
        if all(_grid_or_none(guess, size) == grid for size, grid in grids.items()):
            return guess
    measured = tuple(MeasuredGrid(size, grid) for size, grid in sorted(grids.items()))
    return attrs.evolve(info, rounding="measured", measured=measured)


def _grid_or_none(info: FeatureInfo, size: Size) -> Size | None:
    try:
        return info.grid(*size)
    except errors.InputError:
        return None
