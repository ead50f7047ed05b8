"""Pooled and flattened features: how they are computed, and how they are described.

The NumPy code is the reference. Torch tensors go through ``torch.nn.functional`` on their device and keep their graph;
tensors of other frameworks go through NumPy and back. Sums are taken in float32 at least.
"""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.errors import CapabilityError, InputError
from featreg.pool import Pool
from featreg.spec import FeatureInfo, MeasuredGrid, Rounding, Size

__all__ = ["check_pool", "described", "flat_array", "flattened_info", "pool_array", "pooled_info"]

Floats: TypeAlias = np.ndarray[Any, Any]

GEM_EPS = 1e-6
"""What the generalised mean raises smaller values to, as in the code of Radenović et al. 2018."""


# --- arrays -----------------------------------------------------------------------------------------------------------


def check_pool(info: FeatureInfo, pool: Pool) -> None:
    """Raise CapabilityError for ``cls`` of a layer without a class token, and for a grid of what is no map."""
    if pool.kind == "cls" and info.kind != "vector" and not info.class_token:
        raise CapabilityError(
            f"{info.name!r} has no class token",
            "tokens of which the first is a class token",
            f"{info.kind} with {info.prefix_tokens} other prefix tokens" if info.prefix_tokens else info.kind,
            remedy="pool='avg' or pool='max'",
        )
    if pool.is_grid and info.kind != "map":
        raise CapabilityError(
            f"the pooling {pool} of {info.name!r}, which has no grid",
            "a map",
            info.kind,
            remedy="give the pooling for the maps only, as in pool={'C5': ...}",
        )


def pool_array(array: Array, info: FeatureInfo, pool: Pool) -> Array:
    """One layer's output pooled, in the type of the array; see :class:`~featreg.Pool`.

    Raises CapabilityError as :func:`check_pool` does, and InputError for a map that is smaller than the kernel.
    """
    check_pool(info, pool)
    if info.kind == "vector" or pool.kind == "identity":
        return array
    if pool.kind == "cls":
        return array[:, 0]
    if pool.is_grid:
        pool.grid(int(array.shape[2]), int(array.shape[3]))
    if isinstance(array, np.ndarray):
        return _pool_numpy(array, info, pool)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _pool_torch(array, info, pool)
    pooled = _pool_numpy(to_numpy(array), info, pool)
    return type(array).from_numpy(np.ascontiguousarray(pooled)).astype(array.dtype)


def flat_array(array: Array) -> Array:
    """(N, D), row-major."""
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))


def _positions(array: Array, info: FeatureInfo) -> Array:
    """(N, positions, D) or (N, C, H, W) without the prefix tokens."""
    return array if info.kind == "map" else array[:, info.prefix_tokens :]


def _pool_numpy(array: Floats, info: FeatureInfo, pool: Pool) -> Floats:
    values = _positions(array, info).astype(np.result_type(array.dtype, np.float32), copy=False)
    axes = (2, 3) if info.kind == "map" else (1,)
    pooled: Floats
    if pool.kind == "max":
        pooled = values.max(axis=axes)
    elif pool.kind == "avg":
        pooled = values.mean(axis=axes)
    elif pool.p is not None:
        pooled = np.power(np.power(np.maximum(values, GEM_EPS), pool.p).mean(axis=axes), 1 / pool.p)
    elif pool.output is not None:
        pooled = _bands(_bands(values, 2, pool.output[0]), 3, pool.output[1])
    else:
        pooled = _windows(values, pool)
    return pooled.astype(array.dtype, copy=False)


def _windows(values: Floats, pool: Pool) -> Floats:
    """Average (zeros of the padding count) or maximum over windows, as torch with ``ceil_mode=False`` takes them."""
    assert pool.windows is not None
    (kernel_h, stride_h, pad_h), (kernel_w, stride_w, pad_w) = pool.windows
    outside = 0 if pool.kind == "avgpool" else -np.inf
    padded = np.pad(values, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)), constant_values=outside)
    rows = np.lib.stride_tricks.sliding_window_view(padded, kernel_h, axis=2)[:, :, ::stride_h]
    views = np.lib.stride_tricks.sliding_window_view(rows, kernel_w, axis=3)[:, :, :, ::stride_w]
    pooled: Floats = views.mean(axis=(4, 5)) if pool.kind == "avgpool" else views.max(axis=(4, 5))
    return pooled


def _bands(values: Floats, axis: int, count: int) -> Floats:
    """Averages over ``count`` bands, the i-th from ``floor(i * side / count)`` to ``ceil((i + 1) * side / count)``."""
    side = values.shape[axis]
    bands = [range(index * side // count, -(-(index + 1) * side // count)) for index in range(count)]
    return np.stack([values.take(band, axis).mean(axis=axis) for band in bands], axis)


def _pool_torch(array: Array, info: FeatureInfo, pool: Pool) -> Array:
    torch: Any = sys.modules["torch"]
    functional = torch.nn.functional
    values = _positions(array, info)
    axes = (2, 3) if info.kind == "map" else (1,)
    if pool.kind == "max":
        return values.amax(dim=axes)
    if pool.kind == "maxpool":
        return functional.max_pool2d(values, pool.kernel, pool.stride, pool.padding)
    values = values.to(torch.promote_types(array.dtype, torch.float32))
    if pool.kind == "avg":
        pooled = values.mean(dim=axes)
    elif pool.p is not None:
        pooled = values.clamp(min=GEM_EPS).pow(pool.p).mean(dim=axes).pow(1 / pool.p)
    elif pool.output is not None:
        pooled = functional.adaptive_avg_pool2d(values, pool.output)
    else:
        pooled = functional.avg_pool2d(values, pool.kernel, pool.stride, pool.padding)
    return pooled.to(array.dtype)


# --- descriptions -----------------------------------------------------------------------------------------------------


def described(info: FeatureInfo, pool: Pool | None, flatten: bool, size: Size) -> FeatureInfo:
    """The description, at an input size, of a layer that may be pooled and then flattened.

    Raises InputError where ``info`` knows no grid at this size, and where the grid is too small for the pooling.
    """
    if pool is not None:
        if pool.is_grid and info.kind == "map":
            pool.grid(*info.grid(*size))
        info = pooled_info(info, pool, size)
    return flattened_info(info, math.prod(info.shape(1, *size)), size) if flatten else info


def pooled_info(info: FeatureInfo, pool: Pool, size: Size | None = None) -> FeatureInfo:
    """The description of a feature after pooling.

    The grid of a pooled map follows a formula wherever one holds for every input size. Elsewhere it is ``measured``: at
    the sizes that ``info`` lists, and at ``size``, where ``info`` knows its grid there.
    """
    check_pool(info, pool)
    if info.kind == "vector" or pool.kind == "identity":
        return info
    if not pool.is_grid:
        return _vector(info, info.channels)
    strides = {stride for _, stride, _ in pool.windows or ()}
    reduction = info.reduction * strides.pop() if info.reduction is not None and len(strides) == 1 else None
    rounding = "measured" if reduction is None else _rounding(info, pool)
    measured = _measured(info, pool, size) if rounding == "measured" else ()
    return attrs.evolve(info, reduction=reduction, rounding=rounding, measured=measured)


def _rounding(info: FeatureInfo, pool: Pool) -> Rounding:
    """The formula of the pooled grid for every input size, if there is one.

    A side g becomes floor((g + 2 * padding - kernel) / stride) + 1. That is ceil(g / stride) for a kernel of
    2 * padding + 1, and floor(g / stride) for one of 2 * padding + stride; and rounding up twice is rounding up once by
    the product, as rounding down is.
    """
    if pool.windows is None or info.rounding == "measured":
        return "measured"
    rounds_up = all(kernel == 2 * padding + 1 for kernel, _, padding in pool.windows)
    rounds_down = all(kernel == 2 * padding + stride for kernel, stride, padding in pool.windows)
    if rounds_up and (info.rounding == "ceil" or info.reduction == 1):
        return "ceil"
    return "floor" if rounds_down and (info.rounding == "floor" or info.reduction == 1) else "measured"


def _measured(info: FeatureInfo, pool: Pool, size: Size | None) -> tuple[MeasuredGrid, ...]:
    sizes = dict.fromkeys(entry.input_size for entry in info.measured)
    found = []
    for at in sizes if size is None else {**sizes, size: None}:
        with contextlib.suppress(InputError):  # at this size there is no grid, or none is known
            found.append(MeasuredGrid(at, pool.grid(*info.grid(*at))))
    return tuple(found)


def flattened_info(info: FeatureInfo, width: int, size: Size | None = None) -> FeatureInfo:
    """The description of a layer that is flattened to ``width`` numbers an image, at an input size.

    Where the width depends on the size, it is ``measured``, and holds at ``size`` alone; without it, at no size.
    """
    if info.kind == "vector":
        return info
    if info.length is not None:
        return _vector(info, width)
    measured = []
    if size is not None:
        with contextlib.suppress(InputError):
            measured = [MeasuredGrid(size, info.grid(*size))]
    return attrs.evolve(_vector(info, width), rounding="measured", measured=measured)


def _vector(info: FeatureInfo, channels: int) -> FeatureInfo:
    return FeatureInfo(
        info.name, channels, None, "vector", info.level, info.index, info.head, input_rule=info.input_rule
    )
