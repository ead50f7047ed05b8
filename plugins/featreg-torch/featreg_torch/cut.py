"""Cutting a network behind its last tap: which parameters a run reads, and letting go of all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["Watch", "drop_unused"]


class Watch(TorchFunctionMode):
    """Notes which of a network's parameters and buffers any torch function gets while it is active."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names: dict[int, list[str]] = {}
        for name, tensor in _named(network):
            self._names.setdefault(id(tensor), []).append(name)
        self._seen: set[int] = set()

    @property
    def seen(self) -> frozenset[str]:
        """The names so far; a tensor that several modules share has as many."""
        return frozenset(name for found in self._seen for name in self._names[found])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in pytree.arg_tree_leaves(*args, **(kwargs or {})):
            if isinstance(leaf, torch.Tensor) and id(leaf) in self._names:
                self._seen.add(id(leaf))
        return func(*args, **(kwargs or {}))


def drop_unused(network: nn.Module, used: frozenset[str]) -> None:
    """Set every parameter outside ``used`` to None, and the buffers of modules that own nothing that is used.

    The other buffers of a module in use stay: training updates some that evaluation does not read. So do those that are
    no part of the weights, which some modules look at whenever they are moved (timm's rotary embeddings).
    """
    for prefix, module in network.named_modules(remove_duplicate=False):
        own = {f"{prefix}.{name}".lstrip("."): name for name in (*module._parameters, *module._buffers)}
        idle = not any(full in used for full in own)
        for full, name in own.items():
            if name in module._parameters and full not in used:
                module._parameters[name] = None
            elif name in module._buffers and idle and name not in module._non_persistent_buffers_set:
                module._buffers[name] = None


def _named(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)
