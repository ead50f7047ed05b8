"""The true values of a timm network's layers: the library's own network by its own methods, and plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from featreg.plugin import Layer
from featreg_torch.hooked import as_grid, build_twin, read_hooked

__all__ = ["read_layers"]

Reader = Callable[[np.ndarray[Any, Any]], dict[Layer, torch.Tensor]]


def read_layers(model: str, weights: nn.Module, hooked: Mapping[Layer, str]) -> Reader:
    """Levels and indices, heads, and the layers that modules of these names give, of images (N, 3, H, W).

    ``weights`` is a network of the same make.
    """
    network = build_twin(lambda: timm.create_model(model), weights)

    def read(images: np.ndarray[Any, Any]) -> dict[Layer, torch.Tensor]:
        with torch.no_grad():
            return {
                **_maps(network, torch.from_numpy(images)),
                **_heads(network, torch.from_numpy(images)),
                **read_hooked(network, images, hooked, {}),
            }

    return read


def _maps(network: Any, images: torch.Tensor) -> dict[Layer, torch.Tensor]:
    """What ``forward_intermediates`` gives, by index and by level: the last declared entry of each stride."""
    maps = network.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    strides: Sequence[int] = [entry["reduction"] for entry in network.feature_info]
    found: dict[Layer, torch.Tensor] = dict(enumerate(maps))
    found |= {f"C{stride.bit_length() - 1}": made for stride, made in zip(strides, maps, strict=True)}
    return found


def _heads(network: Any, images: torch.Tensor) -> dict[Layer, torch.Tensor]:
    features = network.forward_features(images.clone())
    pooled = network.forward_head(features, pre_logits=True)
    logits = network(images.clone())
    return {"tokens": features, "features": _as_map(network, features, images), "pooled": pooled, "logits": logits}


def _as_map(network: Any, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    if features.ndim == 3:
        rows, columns = (
            side // patch for side, patch in zip(images.shape[2:], network.patch_embed.patch_size, strict=True)
        )
        return as_grid(features, network.num_prefix_tokens, rows, columns)
    return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else features
