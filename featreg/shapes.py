"""From measured output shapes to a FeatureInfo: kind, channels, stride and rounding, for every backend that measures.

Along one axis a chain of strided windows (convolutions, poolings) maps an input side ``n`` to ``floor((n + c) / r)``
with a constant ``c``: each layer does, and such functions compose into another one. So for a stride ``r`` that divides
``R``, the inputs ``kR`` and ``(k + 1)R`` fix ``r`` and bound ``c``, and ``kR + 1`` and ``(k + 1)R - 1`` decide: only
``ceil(n / r)`` rounds both up, only ``floor(n / r)`` rounds both down. One rectangle of each pair of sides tells it for
every layer at once. What fits neither is ``measured``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import attrs

from featreg.errors import CapabilityError
from featreg.spec import FeatureInfo, MeasuredGrid, Size

__all__ = ["Described", "Form", "Shape", "Shapes", "describe_output", "stride_of"]

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[Size, Shape | None]
"""The shape of one output, for one image, at each input size that was tried; None where it is no single array."""

Rounding: TypeAlias = Literal["ceil", "floor"]

_ROUNDINGS: tuple[Rounding, ...] = ("ceil", "floor")
_MAX_PREFIX = 8  # class, distillation and register tokens: no known network has more
_MAX_UNEVEN_PREFIX = 2

Form: TypeAlias = Literal["plain", "channels last", "patches", "one position"]


@dataclass(frozen=True)
class Described:
    """An output's description, and how the network lays it out: what the extractor has to rearrange.

    ``form`` is "channels last" for a map (N, H, W, C), "patches" for a map whose positions the network holds as tokens
    (N, L, C) behind ``prefix_tokens`` others, and "one position" for a vector that it holds as a map (N, D, 1, 1).
    """

    feature: FeatureInfo
    form: Form = "plain"
    prefix_tokens: int = 0


def describe_output(
    name: str,
    shapes: Shapes,
    size: Size,
    period: int | None,
    *,
    level: str | None = None,
    index: int | None = None,
    head: str | None = None,
    as_map: bool = False,
    as_vector: bool = False,
) -> Described:
    """Describe an output at ``size``, which is one of ``shapes``; tokens of patches as the map that they are a part of
    where ``as_map``, a map of one position as a vector where ``as_vector``.

    ``period`` is the R of the module's docstring: ``shapes`` must then hold the two rectangles. It is None for a
    network that takes one size alone.

    Raises CapabilityError where the output is no map, no tokens and no vector with the images on the first axis.
    """
    shape = shapes.get(size)
    if shape is None or shape[0] != 1 or any(other is None or len(other) != len(shape) for other in shapes.values()):
        raise _unsupported(name, shape)
    known = {at: other for at, other in shapes.items() if other is not None}
    keys: dict[str, Any] = {"level": level, "index": index, "head": head}
    if as_vector and all(other[2:] == (1, 1) for other in known.values()):
        return Described(FeatureInfo(name, shape[1], None, "vector", **keys), "one position")
    if len(shape) == 2:
        return Described(FeatureInfo(name, shape[1], None, "vector", **keys))
    if len(shape) == 3:
        tokens = _tokens(name, known, size, period, keys)
        return _patches(tokens) if as_map else Described(tokens)
    if len(shape) == 4:
        return _map(name, known, size, period, keys)
    raise _unsupported(name, shape)


def stride_of(feature: FeatureInfo, shapes: Shapes, size: Size) -> int | None:
    """The stride of a described map, None where it does not follow the image: pooled, or positions by positions."""
    rows, columns = feature.grid(*size)
    if feature.reduction is None or rows * columns == 1:
        return None
    if len(shapes) > 1:
        return None if len({shape and shape[1:] for shape in shapes.values()}) == 1 else feature.reduction
    exact = (size[0] / feature.reduction, size[1] / feature.reduction)
    return feature.reduction if max(abs(exact[0] - rows), abs(exact[1] - columns)) <= 1 else None


def _map(name: str, shapes: Mapping[Size, Shape], size: Size, period: int | None, keys: dict[str, Any]) -> Described:
    channels_last = _channels_last(name, shapes)
    form: Form = "channels last" if channels_last else "plain"
    first = 1 if channels_last else 2
    grids = {at: (shape[first], shape[first + 1]) for at, shape in shapes.items()}
    channels = shapes[size][3 if channels_last else 1]
    reduction = _stride(grids, period)
    for rounding in _ROUNDINGS:
        if reduction and all(_round(at, reduction, rounding) == grid for at, grid in grids.items()):
            return Described(FeatureInfo(name, channels, reduction, "map", rounding=rounding, **keys), form)
    reduction = reduction or _likely_stride(size[0], grids[size][0])
    keys = {**keys, "rounding": "measured", "measured": (MeasuredGrid(size, grids[size]),)}
    return Described(FeatureInfo(name, channels, reduction, "map", **keys), form)


def _channels_last(name: str, shapes: Mapping[Size, Shape]) -> bool:
    """Whether the last axis keeps its length over all sizes and the second does not; NCHW where both keep it."""
    if len({shape[1] for shape in shapes.values()}) == 1 and not _only_last_can_be_channels(shapes):
        return False
    if len({shape[3] for shape in shapes.values()}) == 1:
        return True
    raise _unsupported(name, next(iter(shapes.values())))


def _only_last_can_be_channels(shapes: Mapping[Size, Shape]) -> bool:
    """At one square size alone: two equal sides lie before the last axis, and unequal ones after the first."""
    if len(shapes) > 1:
        return False
    ((height, width), shape) = next(iter(shapes.items()))
    return height == width and shape[1] == shape[2] != shape[3]


def _stride(grids: Mapping[Size, Size], period: int | None) -> int | None:
    """The pixels that one step of the grid takes: over one period where there is one, else at the one size.

    None where the grid does not grow with the image (a globally pooled map).
    """
    counts = {side: count for at, grid in grids.items() for side, count in zip(at, grid, strict=True)}
    if period is None:
        return next((side // count for side, count in counts.items() if side % count == 0), None)
    for side, count in counts.items():
        steps = counts.get(side + period, 0) - count
        if steps > 0:
            return period // steps if period % steps == 0 else None
    return None


def _likely_stride(side: int, count: int) -> int:
    """The stride where no growth shows it: the power of two that is off by one position at most, else the quotient."""
    power = 2 ** max(0, round(math.log2(side / count)))
    return int(power) if abs(side / power - count) <= 1 < count else max(1, round(side / count))


def _round(size: Size, reduction: int, rounding: Rounding) -> Size:
    if rounding == "floor":
        return size[0] // reduction, size[1] // reduction
    return -(-size[0] // reduction), -(-size[1] // reduction)


def _tokens(
    name: str, shapes: Mapping[Size, Shape], size: Size, period: int | None, keys: dict[str, Any]
) -> FeatureInfo:
    """Tokens on a patch grid, behind the smallest number of prefix tokens that explains their count at every size."""
    channels = shapes[size][2]
    if any(shape[2] != channels for shape in shapes.values()):
        raise _unsupported(name, shapes[size])
    whole = period or math.gcd(*size)
    strides = [stride for stride in range(1, whole + 1) if whole % stride == 0]
    for prefix, stride, rounding in itertools.product(range(_MAX_PREFIX + 1), strides, _ROUNDINGS):
        grids = {at: _round(at, stride, rounding) for at in shapes}
        if all(prefix + rows * columns == shapes[at][1] for at, (rows, columns) in grids.items()):
            return FeatureInfo(name, channels, stride, "tokens", prefix_tokens=prefix, rounding=rounding, **keys)
    uneven = _uneven_grid(size, shapes[size][1]) if len(shapes) == 1 else None
    if uneven is None:
        raise _unsupported(name, shapes[size])
    prefix, side = uneven
    measured = (MeasuredGrid(size, (side, side)),)
    keys = {**keys, "prefix_tokens": prefix, "rounding": "measured", "measured": measured}
    return FeatureInfo(name, channels, _likely_stride(size[0], side), "tokens", **keys)


def _uneven_grid(size: Size, length: int) -> tuple[int, int] | None:
    """Prefix tokens and side of the grid where a square image gives one that no stride explains (windows that overlap).

    The strides that are taken for one lie between those of a patch of 4 and of 64 pixels.
    """
    if size[0] != size[1]:
        return None
    for prefix in range(_MAX_UNEVEN_PREFIX + 1):
        side = math.isqrt(max(0, length - prefix))
        if side > 1 and side * side == length - prefix and 4 * side <= size[0] <= 64 * side:
            return prefix, side
    return None


def _patches(tokens: FeatureInfo) -> Described:
    feature = attrs.evolve(tokens, kind="map", prefix_tokens=0)
    return Described(feature, "patches", tokens.prefix_tokens)


def _unsupported(name: str, shape: Shape | None) -> CapabilityError:
    return CapabilityError(
        f"the output of {name!r} is no map, no tokens and no vector",
        "(N, C, H, W), (N, L, D) or (N, D)",
        "no single array" if shape is None else f"{shape} for one image",
        remedy="choose another layer: its parent, or one of its parts",
    )
