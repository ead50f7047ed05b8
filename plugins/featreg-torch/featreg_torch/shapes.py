"""Exact shapes without data: a network on torch's meta device is run at a few sizes.

Along one axis a grid side is a non-decreasing function f of the image side with f(n + R) = f(n) + R / r for every
common multiple R of the strides (a composition of floor((n + a) / s) + b). So with f(kR) = kR / r, one more pixel
decides ``ceil`` for all sizes (f(kR + 1) = kR / r + 1 bounds every larger remainder from below) and one pixel less
decides ``floor`` (f(kR - 1) = kR / r - 1 bounds every smaller one from above). Where neither holds the grid is
``measured``. Both axes are tried both ways, since padding may differ between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs
import torch
from torch import nn

from featreg.plugin import FeatureInfo, InputRule, MeasuredGrid, Size, errors
from featreg_torch.state import factory_defaults, seeded
from featreg_torch.taps import Outlet, Stored

__all__ = ["PROBES", "Shape", "Shapes", "build_on_meta", "find_input_rule", "read_shapes"]

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[Size, Sequence[Shape]]

_ROUNDINGS: tuple[Literal["ceil", "floor"], ...] = ("ceil", "floor")

BATCH = 2
"""Probes hold two images, so that a first axis that is not the batch shows."""

PERIOD = 64
PROBES: tuple[Size, ...] = (
    (4 * PERIOD, 5 * PERIOD),
    (6 * PERIOD, 4 * PERIOD),
    (4 * PERIOD + 1, 5 * PERIOD - 1),
    (4 * PERIOD - 1, 5 * PERIOD + 1),
)
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError)
"""What a network raises for a size that it does not take."""


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory, in evaluation mode; by way of the CPU where its constructor needs real numbers."""
    with seeded():
        try:
            with factory_defaults("meta"):
                return build().eval()
        except (NotImplementedError, RuntimeError):
            with factory_defaults("cpu"):
                return build().eval().to("meta")


def probe(taps: nn.Module, size: Size, channels: int = 3) -> list[Shape]:
    """The shapes of every tap for two images of one size; whatever the network raises at this size goes through."""
    with torch.no_grad(), factory_defaults("meta"):
        outputs = taps(torch.empty(BATCH, channels, *size, device="meta"))
    return [tuple(output.shape) for output in outputs]


def find_input_rule(taps: nn.Module, native: Size) -> tuple[InputRule, dict[Size, list[Shape]]]:
    """Which sizes the network takes, and the shapes at those that were tried."""
    seen = {native: probe(taps, native)}
    fixed = InputRule(fixed=native), dict(seen)
    try:
        seen |= {size: probe(taps, size) for size in PROBES[:2]}
    except _REFUSALS:
        return fixed
    for multiple in _MULTIPLES:
        around = [(4 * PERIOD + step, 5 * PERIOD - step) for step in (multiple, -multiple)]
        try:
            seen |= {size: probe(taps, size) for size in around}
        except _REFUSALS:
            continue
        return InputRule(multiple_of=multiple), seen
    return fixed


def read_shapes(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> tuple[FeatureInfo, Stored]:
    """What an outlet's shapes at several sizes say of it; CapabilityError where no kind of feature fits."""
    ranks = {len(shape) for shape in shapes.values()}
    batches = {shape[0] for shape in shapes.values()}
    if ranks == {2} and batches == {BATCH} and outlet.kind in (None, "vector"):
        return _info(outlet, shapes[native][1], None, "vector"), "nd"
    if ranks == {3} and (outlet.kind in (None, "tokens") or (outlet.kind == "map" and outlet.reduction)):
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
    return _with_grid(_info(outlet, channels, _stride(native, grids), "map"), grids), stored


def _map_layout(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> Stored:
    """Channels are the axis that the image size does not change; at one size alone, the one that is no grid side."""
    seen = list(shapes.values())
    if len(seen) > 1:
        fixed = [len({shape[axis] for shape in seen}) == 1 for axis in range(4)]
        return "nhwc" if fixed[3] and not fixed[1] else "nchw"
    (shape,) = seen
    layouts: tuple[tuple[Stored, Size, int], ...] = (("nchw", shape[2:], shape[1]), ("nhwc", shape[1:3], shape[3]))  # type: ignore[assignment]
    fitting = [(stored, channels) for stored, grid, channels in layouts if _covers(native, grid)]
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
    raise errors.CapabilityError(
        f"the tokens of {outlet.source!r} form no grid of the image",
        "one row of tokens per image: prefix tokens, then one token per patch",
        f"{shapes[native]} for {BATCH} images of {native[0]}x{native[1]}",
    )


def _info(
    outlet: Outlet, channels: int, reduction: int | None, kind: Literal["map", "tokens", "vector"]
) -> FeatureInfo:
    return FeatureInfo(
        outlet.source,
        channels,
        reduction,
        kind,
        outlet.level,
        outlet.index,
        outlet.head,
        outlet.prefix_tokens if kind == "tokens" else 0,
    )


def _stride(native: Size, grids: Mapping[Size, Size]) -> int:
    """The stride in pixels: by how much the image must grow for one more cell, else how many pixels a cell covers."""
    if all(size in grids for size in PROBES[:2]):
        first, second = (grids[size] for size in PROBES[:2])
        cells = first[1] - first[0]  # for one period more
        if cells > 0 and PERIOD % cells == 0 and second[0] - first[0] == 2 * cells:
            return PERIOD // cells
    return max(1, round(native[0] / grids[native][0]))


def _with_grid(info: FeatureInfo, grids: Mapping[Size, Size]) -> FeatureInfo:
    proven = len(grids) == 1 or PERIOD % (info.reduction or PERIOD) == 0  # one size only, or a stride that divides R
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
