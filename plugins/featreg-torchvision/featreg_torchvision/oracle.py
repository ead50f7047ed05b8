"""The true values of a torchvision network's layers: the library's own network under plain hooks, as its code runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import DenseNet, SwinTransformer, VisionTransformer, get_model

from featreg.plugin import Layer
from featreg_torch.hooked import as_grid, build_twin, read_hooked

__all__ = ["read_layers"]


def read_layers(
    model: str, weights: nn.Module, outputs: Mapping[Layer, str], inputs: Mapping[Layer, str], part: str
) -> Callable[[np.ndarray[Any, Any]], dict[Layer, torch.Tensor]]:
    """The layers that modules of these names give or are given, as a function of images (N, 3, H, W).

    ``weights`` is a network of the same make; ``part`` names the module that takes the images and in which the other
    names are, empty for the network itself.
    """

    def build() -> nn.Module:
        network: nn.Module = get_model(model, weights=None, **({"weights_backbone": None} if part else {}))
        return network

    network = build_twin(build, weights).get_submodule(part)

    def read(images: np.ndarray[Any, Any]) -> dict[Layer, torch.Tensor]:
        found = read_hooked(network, images, outputs, inputs)
        return {layer: _arranged(network, layer, tensor) for layer, tensor in found.items()}

    return read


def _arranged(network: nn.Module, layer: Layer, tensor: torch.Tensor) -> torch.Tensor:
    """What a hook saw, as the specification has it."""
    if isinstance(network, SwinTransformer) and tensor.ndim == 4 and layer != "features":  # which it permutes itself
        return tensor.permute(0, 3, 1, 2)
    if isinstance(network, VisionTransformer) and tensor.ndim == 3 and layer != "tokens":
        side = network.image_size // network.patch_size
        return as_grid(tensor, 1, side, side)
    if isinstance(network, DenseNet) and layer in ("C5", "features"):  # what its forward does to its last module's
        return functional.relu(tensor)
    return tensor
