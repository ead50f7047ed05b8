"""Rows of arrays as RGB, by the same rules as images in files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from featreg.errors import SourceError
from featreg.images import MAX_PIXELS, Pixels

__all__ = ["check_form", "row_pixels"]


def check_form(shape: Sequence[int], dtype: np.dtype[Any], what: str) -> None:
    """Raise SourceError unless an array of this form holds images, one a row."""
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise SourceError(
            f"{what!r} holds no images", "uint8 or uint16", str(dtype), remedy="scale it to uint8 by a rule of your own"
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        first = len(shape) == 4 and shape[1] in (1, 3, 4)
        raise SourceError(
            f"{what!r} holds no images",
            "(N, H, W), or (N, H, W, C) with 1, 3 or 4 channels",
            str(tuple(shape)),
            remedy="numpy.moveaxis(array, 1, -1) where the channels stand first" if first else "",
        )
    if 0 in shape or math.prod(shape[1:3]) > MAX_PIXELS:
        raise SourceError(f"{what!r} holds no images", f"rows of 1 to {MAX_PIXELS} pixels", str(tuple(shape)))


def row_pixels(row: np.ndarray[Any, Any]) -> Pixels:
    """One row, as :func:`check_form` has it, as RGB of (height, width, 3) in memory of its own.

    Of uint16 the high byte counts, grey stands in all three channels, alpha is dropped.
    """
    if row.dtype.itemsize == 2:
        row = row >> 8
    if row.ndim == 2:
        row = row[:, :, None]
    rgb = row[:, :, :3]
    return np.array(np.broadcast_to(rgb, (*rgb.shape[:2], 3)), np.uint8)
