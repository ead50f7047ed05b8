"""Exact shapes without data: a network on torch's meta device is run at a few sizes.

Along one axis a grid side is a non-decreasing function f of the image side with f(n + R) = f(n) + R / r for every
common multiple R of the strides (a composition of floor((n + a) / s) + b). So with f(kR) = kR / r, one more pixel
decides ``ceil`` for all sizes (f(kR + 1) = kR / r + 1 bounds every larger remainder from below) and one pixel less
decides ``floor`` (f(kR - 1) = kR / r - 1 bounds every smaller one from above). Where neither holds the grid is
``measured``.
"""

from __future__ import annotations

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

BATCH = 2
"""Probes hold two images, so that a first axis that is not the batch shows."""

PERIOD = 64
PROBES: tuple[Size, ...] = (
    (4 * PERIOD, 5 * PERIOD),
    (6 * PERIOD, 4 * PERIOD),
    (4 * PERIOD + 1, 5 * PERIOD - 1),
)
_MULTIPLES = (2, 4, 8, 16, 32, 64)


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
    try:
        seen |= {size: probe(taps, size) for size in PROBES[:2]}
    except Exception:  # noqa: BLE001  (a network may refuse a size with any exception)
        return InputRule(fixed=native), {native: seen[native]}
    for multiple in (1, *_MULTIPLES):
        size = (4 * PERIOD + multiple, 5 * PERIOD - multiple)
        try:
            seen[size] = probe(taps, size)
        except Exception:  # noqa: BLE001
            continue
        return InputRule(multiple_of=multiple), seen
    return InputRule(fixed=native), {native: seen[native]}


def read_shapes(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> tuple[FeatureInfo, Stored]:
    """What an outlet's shapes at several sizes say of it; CapabilityError where no kind of feature fits."""
    ranks = {len(shape) for shape in shapes.values()}
    batches = {shape[0] for shape in shapes.values()}
    if ranks == {2} and batches == {BATCH} and outlet.kind in (None, "vector"):
        return _info(outlet, shapes[native][1], None, "vector"), "nd"
    if ranks == {3} and outlet.kind != "vector":
        return _read_tokens(outlet, native, shapes)
    if ranks == {4} and batches == {BATCH} and outlet.kind in (None, "map"):
        return _read_map(outlet, native, shapes)
    raise errors.CapabilityError(
        f"{outlet.source!r} returns no {outlet.kind or 'map, tokens or vector'} per image",
        "(N, C, H, W), (N, L, D) or (N, D)",
        f"{shapes[native]} for {BATCH} images of {native[0]}x{native[1]}",
    )


def _read_map(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> tuple[FeatureInfo, Stored]:
    stored = outlet.stored or _map_layout(outlet, shapes)
    last = stored == "nhwc"
    grids = {size: (shape[1], shape[2]) if last else (shape[2], shape[3]) for size, shape in shapes.items()}
    channels = shapes[native][3 if last else 1]
    return _with_grid(_info(outlet, channels, _stride(native, grids), "map"), grids), stored


def _map_layout(outlet: Outlet, shapes: Mapping[Size, Shape]) -> Stored:
    """Channels are the axis that the image size does not change, or the one as wide as the library declares."""
    seen = list(shapes.values())
    fixed = [len({shape[axis] for shape in seen}) == 1 for axis in range(4)]
    if len(seen) > 1 and not fixed[1] and fixed[3]:
        return "nhwc"
    if len(seen) == 1 and outlet.channels == seen[0][3] != seen[0][1]:
        return "nhwc"
    return "nchw"


def _read_tokens(outlet: Outlet, native: Size, shapes: Mapping[Size, Shape]) -> tuple[FeatureInfo, Stored]:
    stored = outlet.stored or "nld"
    batch_axis, length_axis = (1, 0) if stored == "lnd" else (0, 1)
    lengths = {size: shape[length_axis] - outlet.prefix_tokens for size, shape in shapes.items()}
    reduction = outlet.reduction or _patch(native, lengths[native])
    kind: Literal["map", "tokens"] = "map" if outlet.kind == "map" else "tokens"
    for rounding in ("ceil", "floor"):
        if reduction is None or any(shape[batch_axis] != BATCH for shape in shapes.values()):
            break
        info = attrs.evolve(_info(outlet, shapes[native][2], reduction, kind), rounding=rounding)
        grids = {size: info.grid(*size) for size in lengths}
        if all(rows * columns == lengths[size] for size, (rows, columns) in grids.items()):
            return info, stored
    raise errors.CapabilityError(
        f"the tokens of {outlet.source!r} form no grid of the image",
        "one row of tokens per image: prefix tokens, then one token per patch",
        f"{shapes[native]} for {BATCH} images of {native[0]}x{native[1]}",
    )


def _patch(native: Size, tokens: int) -> int | None:
    """The largest side of square patches of which ``tokens`` whole ones fit into an image."""
    sides = range(min(native), 0, -1)
    return next((side for side in sides if (native[0] // side) * (native[1] // side) == tokens), None)


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
        cells = grids[PROBES[0]][1] - grids[PROBES[0]][0]
        if cells > 0 and PERIOD % cells == 0:
            return PERIOD // cells
    return max(1, round(native[0] / grids[native][0]))


def _with_grid(info: FeatureInfo, grids: Mapping[Size, Size]) -> FeatureInfo:
    proven = len(grids) == 1 or PERIOD % (info.reduction or PERIOD) == 0  # one size only, or a stride that divides R
    for rounding in ("ceil", "floor") if proven else ():
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
