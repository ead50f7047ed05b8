"""Shapes of common operations at once, where torch would work them out in Python.

On the meta device torch runs the reference implementation of a normalisation or an activation operation by operation,
which takes milliseconds, though the output is like the input. Only calls that are known to succeed are answered here;
all others, those that torch refuses among them, go to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["QuickShapes"]

aten = torch.ops.aten
_Tensor: TypeAlias = torch.Tensor


class QuickShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type this class
    """While it is active, operations on meta tensors give tensors of the right shape, strides and type, sooner."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._functions = _QuickFunctions()

    def __enter__(self) -> QuickShapes:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._functions.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        self._functions.__exit__(*raised)  # type: ignore[no-untyped-call]
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = _ANSWERS.get(func)
        if answer is not None and (answer is _activation or not kwargs) and args[0].device.type == "meta":
            result = answer(*args)
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


class _QuickFunctions(TorchFunctionMode):
    """The same for functions that torch takes apart before operations are dispatched: an LSTM into its steps."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = _lstm(*args) if func is torch.lstm and not kwargs and len(args) == LSTM_ARGUMENTS else None
        return func(*args, **(kwargs or {})) if result is None else result


LSTM_ARGUMENTS = 9
"""Of ``torch.lstm`` for padded sequences, all by place, as ``nn.LSTM`` calls it."""


def _lstm(tensor: Any, states: Any, weights: Any, *rest: Any) -> tuple[_Tensor, _Tensor, _Tensor] | None:
    if not isinstance(states, tuple | list):
        return None  # a packed sequence
    biases, layers, _, _, both_ways, batch_first = rest
    hidden, cell = states
    length, batch = tensor.shape[:2][:: -1 if batch_first else 1] if tensor.ndim == 3 else (0, 0)
    ways, width = 2 if both_ways else 1, hidden.shape[-1]
    shapes = [
        shape
        for layer in range(layers)
        for _ in range(ways)
        for shape in ((4 * width, ways * width if layer else tensor.shape[-1]), (4 * width, width))
        + ((4 * width,),) * (2 if biases else 0)
    ]
    fits = tensor.numel() > 0 and hidden.shape == cell.shape == (layers * ways, batch, width)
    fits = fits and [tuple(weight.shape) for weight in weights] == shapes and tensor.device.type == "meta"
    if not fits or not _alike(tensor, hidden, cell, *weights):
        return None
    output = tensor.new_empty(length, batch, ways * width)
    return output.transpose(0, 1) if batch_first else output, torch.empty_like(hidden), torch.empty_like(cell)


def _in_place(tensor: _Tensor, *_: Any) -> _Tensor | None:
    """An operation in place whose other arguments are numbers."""
    return tensor if tensor.is_floating_point() else None


def _normal(tensor: _Tensor, mean: float = 0, std: float = 1) -> _Tensor | None:
    return _in_place(tensor) if std >= 0 else None


def _clamp(tensor: _Tensor, low: float | None = None, high: float | None = None) -> _Tensor | None:
    return _in_place(tensor) if low is not None or high is not None else None


def _activation(tensor: _Tensor, *_: Any) -> _Tensor | None:
    return torch.empty_like(tensor) if tensor.is_floating_point() else None


def _softmax(tensor: _Tensor, axis: int, *rest: Any) -> _Tensor | None:
    fits = tensor.is_floating_point() and -tensor.ndim <= axis < tensor.ndim and not any(rest)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format) if fits else None


def _batch_norm(tensor: _Tensor, *rest: Any) -> tuple[_Tensor, _Tensor, _Tensor] | None:
    vectors, training = [vector for vector in rest[:4] if vector is not None], rest[4]
    fits = tensor.ndim >= 2 and all(vector.shape == tensor.shape[1:2] for vector in vectors)
    if not fits or not _alike(tensor, *vectors):
        return None
    moments = tensor.new_empty(tensor.shape[1] if training else 0)
    return torch.empty_like(tensor), moments, torch.empty_like(moments)


def _layer_norm(
    tensor: _Tensor, shape: list[int], weight: _Tensor | None, bias: _Tensor | None, _: float
) -> tuple[_Tensor, _Tensor, _Tensor] | None:
    axes = len(shape)
    vectors = [vector for vector in (weight, bias) if vector is not None]
    fits = 0 < axes <= tensor.ndim and list(tensor.shape[-axes:]) == list(shape)
    if not fits or any(list(vector.shape) != list(shape) for vector in vectors) or not _alike(tensor, *vectors):
        return None
    moments = tensor.new_empty(*tensor.shape[:-axes], *(1,) * axes)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format), moments, torch.empty_like(moments)


def _addmm(bias: _Tensor, left: _Tensor, right: _Tensor) -> _Tensor | None:
    fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0] and bias.shape == right.shape[1:]
    return left.new_empty(left.shape[0], right.shape[1]) if fits and _alike(bias, left, right) else None


def _group_norm(tensor: _Tensor, *rest: Any) -> tuple[_Tensor, _Tensor, _Tensor] | None:
    weight, bias, batch, channels, cells, groups, _ = rest
    vectors = [vector for vector in (weight, bias) if vector is not None]
    fits = (
        tensor.is_contiguous() and tensor.shape[:2] == (batch, channels) and tensor.numel() == batch * channels * cells
    )
    fits = fits and groups > 0 and channels % groups == 0
    if not fits or any(vector.shape != (channels,) for vector in vectors) or not _alike(tensor, *vectors):
        return None
    return torch.empty_like(tensor), tensor.new_empty(batch, groups), tensor.new_empty(batch, groups)


def _elementwise(left: _Tensor, right: Any) -> _Tensor | None:
    if not isinstance(right, torch.Tensor):
        plain = type(right) in (int, float) and left.is_floating_point()
        return torch.empty_like(left) if plain else None
    same = left.shape == right.shape and left.stride() == right.stride()
    spread = left.is_contiguous() and left.numel() > 0 and _spreads(right.shape, left.shape)
    return torch.empty_like(left) if _alike(left, right) and (same or spread) else None


def _spreads(small: torch.Size, large: torch.Size) -> bool:
    """Whether a tensor is repeated along some axes of another that it is joined with."""
    return len(small) <= len(large) and all(
        one in (1, other) for one, other in zip(reversed(small), reversed(large), strict=False)
    )


def _upsample(tensor: _Tensor, size: list[int], *_: Any) -> _Tensor | None:
    fits = tensor.ndim == 4 and tensor.is_contiguous() and tensor.numel() > 0 and tensor.is_floating_point()
    fits = fits and len(size) == 2 and all(side > 0 for side in size)
    return tensor.new_empty(*tensor.shape[:2], *size) if fits else None


def _alike(first: _Tensor, *others: _Tensor) -> bool:
    return first.is_floating_point() and all(
        other.dtype == first.dtype and other.device.type == "meta" for other in others
    )


_ANSWERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((aten.uniform_.default, aten.erfinv_.default), _in_place),
    aten.normal_.default: _normal,
    aten.clamp_.default: _clamp,
    **dict.fromkeys(
        (aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.relu.default, aten.hardswish.default),
        _activation,
    ),
    **dict.fromkeys((aten._softmax.default, aten._safe_softmax.default), _softmax),
    **dict.fromkeys(
        (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.pow.Tensor_Scalar),
        _elementwise,
    ),
    **dict.fromkeys((aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default), _upsample),
    aten.native_group_norm.default: _group_norm,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
}
