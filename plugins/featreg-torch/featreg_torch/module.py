"""An opened network as a module of torch: images in, a dictionary of features out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from featreg.plugin import Layer

__all__ = ["FeatureModule"]


class FeatureModule(nn.Module):
    """Maps float images (N, 3, H, W) to ``{str(layer): tensor}`` in the order of the request.

    It trains like any module: gradients flow, ``train()`` and ``eval()`` are the caller's, ``parameters()`` are those
    that the layers need. ``network`` is the library's own network, of which these are a part; its methods work on it,
    such as timm's ``set_grad_checkpointing`` (CapabilityError where a layer's module then no longer runs). It can be
    copied, pickled, compiled by ``torch.compile`` (``fullgraph=True`` for torchvision's graphs alone: dynamo does not
    trace the setting of hooks, and so breaks off before the network) and exported by ``torch.export``
    (``strict=False``).
    """

    network: nn.Module

    def __init__(self, network: nn.Module, taps: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.taps = taps
        self.keys = tuple(map(str, layers))
        object.__setattr__(self, "network", network)  # its parameters are those of the taps, counted once
        if isinstance(taps, fx.GraphModule):
            taps.graph.owning_module = None  # no circle: the weights go as soon as the last who holds them does

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.keys, self.taps(images), strict=True))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        before = dict(self.taps.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        after = dict(self.taps.named_buffers())
        moved = {id(buffer): after[name] for name, buffer in before.items()}
        for module in self.network.modules():  # a graph has containers of its own, with the network's buffers
            for name, buffer in module._buffers.items():
                if id(buffer) in moved:
                    module._buffers[name] = moved[id(buffer)]
        return self
