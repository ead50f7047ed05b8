"""Shapes without arithmetic: MindSpore's own fake tensors, and networks whose parameters nobody has filled.

On the device ``meta`` (``mindspore.DeviceCtx``, MindSpore 2.10) an operation infers its output's shape and type with
the same code as before a real run, and does no more. A network is built on the CPU all the same, since mindcv computes
tables while it builds, and runs there as it is. An operation may leave a parameter that it reads without its values:
what has run on fake tensors is never run on real ones.

Three gaps of that device are closed here, all found by running mindcv:

- A tensor method that MindSpore implements in Python alone returns None; that Python is called instead.
- An assignment to a part of a tensor writes to memory that is not there and ends the process; it raises instead, and
  the caller runs the network on real tensors.
- An operation in place (``x += y``) takes operands of any shapes, and complains late or never; it is done as the one
  that makes a new tensor.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from featreg_mindspore.libraries import mindspore
from featreg_mindspore.runtime import eager

__all__ = ["CAN_FAKE", "faking", "unfilled"]

CAN_FAKE = hasattr(mindspore, "DeviceCtx")
"""Whether this MindSpore has fake tensors."""

_IN_PLACE = {
    "__iadd__": operator.add,
    "__isub__": operator.sub,
    "__imul__": operator.mul,
    "__itruediv__": operator.truediv,
}
_PREFIXES = ("tensor_", "deprecated_tensor_")


@contextmanager
def faking() -> Iterator[None]:
    """Operations infer shapes and compute nothing; one thread at a time, and the caller's device comes back."""
    with eager(), ExitStack() as stack:
        for name, python in _python_methods().items():
            stack.enter_context(_replaced(mindspore.Tensor, name, _second(getattr(mindspore.Tensor, name), python)))
        for name, operation in _IN_PLACE.items():
            stack.enter_context(_replaced(mindspore.Tensor, name, _as_method(operation)))
        stack.enter_context(_replaced(mindspore.Tensor, "__setitem__", _refuse_assignment))
        stack.enter_context(mindspore.DeviceCtx("meta"))
        yield


@contextmanager
def unfilled() -> Iterator[None]:
    """Initialisers leave parameters as they are allocated: large ones cost no memory until something is written."""
    initializer = importlib.import_module("mindspore.common.initializer").Initializer
    with eager(), _replaced(initializer, "__call__", lambda self, array: None):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = name in vars(owner)
    original = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@functools.cache
def _python_methods() -> Mapping[str, Callable[..., Any]]:
    """The tensor methods that MindSpore has in Python, by name; of two signatures the older one."""
    module = importlib.import_module("mindspore.ops.tensor_method")
    found = {
        name.removeprefix(prefix): getattr(module, name)
        for prefix in _PREFIXES
        for name in dir(module)
        if name.startswith(prefix)
    }
    return {name: method for name, method in found.items() if hasattr(mindspore.Tensor, name)}


def _second(first: Callable[..., Any], python: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(python)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = first(self, *args, **kwargs)
        return python(self, *args, **kwargs) if result is None else result

    return method


def _as_method(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return operation(self, other)  # a function of C's, as those of operator are, does not bind to an instance

    return method


def _refuse_assignment(self: Any, *_: Any) -> None:
    raise NotImplementedError("a fake tensor has no memory to assign to")
