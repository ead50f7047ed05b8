"""True values for the oracles of conformance cases: layers of a library's own network, read by plain hooks.

Nothing here goes through the taps, which are under test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from featreg.plugin import Layer

__all__ = ["as_grid", "build_twin", "read_hooked"]


def build_twin(build: Callable[[], nn.Module], weights: nn.Module) -> nn.Module:
    """What ``build`` makes, in evaluation mode and with the weights of another network of that make.

    Weights that the other has dropped, since none of its layers needs them, stay random; the generator of random
    numbers stays as it was. Raises RuntimeError for weights that the network does not have.
    """
    with torch.random.fork_rng(devices=[]):
        network = build().eval()
    network.load_state_dict({**network.state_dict(), **weights.state_dict()})
    return network


def read_hooked(
    network: nn.Module, images: np.ndarray[Any, Any], outputs: Mapping[Layer, str], inputs: Mapping[Layer, str]
) -> dict[Layer, torch.Tensor]:
    """What the modules of some names give, and what others are given, while a network runs on images (N, 3, H, W).

    Each tensor is copied at that moment, before a later operation writes to it. The name ``""`` is the network's own.
    """
    found: dict[Layer, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        for layer, name in outputs.items():
            stack.enter_context(_keeping_output(network.get_submodule(name), found, layer))
        for layer, name in inputs.items():
            stack.enter_context(_keeping_input(network.get_submodule(name), found, layer))
        with torch.no_grad():
            network(torch.from_numpy(images))
    return found


@contextlib.contextmanager
def _keeping_output(module: nn.Module, found: dict[Layer, torch.Tensor], layer: Layer) -> Iterator[None]:
    def keep(_: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        found[layer] = output.clone()

    with module.register_forward_hook(keep):
        yield


@contextlib.contextmanager
def _keeping_input(module: nn.Module, found: dict[Layer, torch.Tensor], layer: Layer) -> Iterator[None]:
    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found[layer] = inputs[0].clone()

    with module.register_forward_pre_hook(keep):
        yield


def as_grid(tokens: torch.Tensor, prefix: int, rows: int, columns: int) -> torch.Tensor:
    """Tokens (N, L, D), the first of which are no patches, as a map (N, D, rows, columns)."""
    patches = tokens[:, prefix:].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], rows, columns)
