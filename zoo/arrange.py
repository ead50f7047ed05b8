"""A raw output, laid out as the specification says: (N, C, H, W), (N, L, D) or (N, D).

This is written from ``specs/`` alone and shares no code with featreg: which axis is what is told from the image's own
aspect ratio and the number of images, never from what featreg predicts.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np

__all__ = ["Frame", "Mismatch", "arrange", "arranged_shape", "is_near"]

Shape = tuple[int, ...]
_SLACK = 3
"""By how many cells a grid may fall short of side / stride: networks that pad nothing lose some at the borders."""


@attrs.frozen
class Frame:
    """A batch: ``batch`` images of ``size`` (height, width), before whose patches a network puts ``prefix`` tokens."""

    batch: int
    size: tuple[int, int]
    prefix: int = 0


class Mismatch(Exception):
    """A raw output that cannot be laid out as a kind of feature."""


def arranged_shape(raw: Shape, kind: str, predicted: Shape, frame: Frame) -> Shape:
    """The shape that :func:`arrange` would give an output of the shape ``raw``."""
    blank = np.broadcast_to(np.zeros((), dtype=np.bool_), raw)
    return tuple(arrange(blank, kind, predicted, frame).shape)


def arrange(raw: np.ndarray[Any, Any], kind: str, predicted: Shape, frame: Frame) -> np.ndarray[Any, Any]:
    """``raw`` as a feature of ``kind``.

    ``predicted`` is needed where tokens become a
    map: it says the grid, which must then account for every token and have the aspect of the image. Raises Mismatch.
    """
    if raw.ndim == 4:
        found = _from_map(raw, kind, frame.size)
    elif raw.ndim == 3:
        found = _from_tokens(raw, kind, predicted, frame)
    elif raw.ndim == 2 and kind == "vector":
        found = raw
    else:
        raise Mismatch(f"an output of shape {raw.shape} is no {kind}")
    if found.shape[0] != frame.batch:
        raise Mismatch(f"an output of shape {raw.shape} does not hold {frame.batch} images first")
    return found


def _from_map(raw: np.ndarray[Any, Any], kind: str, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    last = _distortion(raw.shape[1:3], size) < _distortion(raw.shape[2:], size)
    channels_first = raw.transpose(0, 3, 1, 2) if last else raw
    if kind == "map":
        return channels_first
    if kind == "tokens":
        return channels_first.reshape(*channels_first.shape[:2], -1).transpose(0, 2, 1)
    if channels_first.shape[2:] != (1, 1):
        raise Mismatch(f"an output of shape {raw.shape} is no vector")
    return channels_first[:, :, 0, 0]


def _from_tokens(raw: np.ndarray[Any, Any], kind: str, predicted: Shape, frame: Frame) -> np.ndarray[Any, Any]:
    tokens = raw if raw.shape[0] == frame.batch else raw.transpose(1, 0, 2)
    if kind == "tokens":
        return tokens
    if kind != "map" or len(predicted) != 4:
        raise Mismatch(f"an output of shape {raw.shape} is no {kind}")
    rows, columns = predicted[2:]
    before = tokens.shape[1] - rows * columns
    if before not in (0, frame.prefix):
        raise Mismatch(
            f"{tokens.shape[1]} tokens are no {rows}x{columns} patches behind {frame.prefix} or 0 prefix tokens"
        )
    if not _fits((rows, columns), frame.size):
        raise Mismatch(f"{rows}x{columns} patches have not the aspect of {frame.size[0]}x{frame.size[1]} pixels")
    patches = tokens[:, before:].transpose(0, 2, 1)
    return patches.reshape(*patches.shape[:2], rows, columns)


def is_near(grid: Shape, size: tuple[int, int], reduction: int) -> bool:
    """Whether no other power of two is nearer to the stride that makes this grid, or one cell tells the two.

    At small sizes networks that pad nothing lose so much at the borders that this tells nothing.
    """
    return all(
        abs(math.log2(side / cells / reduction)) < 0.5 or abs(side / reduction - cells) <= 1
        for side, cells in zip(size, grid, strict=True)
    )


def _distortion(grid: Shape, size: tuple[int, int]) -> float:
    """How far a grid's aspect ratio is from the image's."""
    return abs(math.log(grid[0] * size[1] / (grid[1] * size[0])))


def _fits(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one stride explains both sides, whatever the rounding and the padding."""
    least = max(side / (cells + _SLACK) for side, cells in zip(size, grid, strict=True))
    most = min(side / max(cells - 1, 0.5) for side, cells in zip(size, grid, strict=True))
    return least <= most
