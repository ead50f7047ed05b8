"""An opened network as a module of torch: images in, a dictionary of features out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from featreg.plugin import Layer

__all__ = ["FeatureModule"]


class FeatureModule(nn.Module):
    """Maps float images (N, 3, H, W) to ``{str(layer): tensor}`` in the order of the request.

    It trains like any module: gradients flow, ``train()`` and ``eval()`` are the caller's, ``parameters()`` are those
    that the layers need. ``network`` is the library's own network, of which these are a part. It can be copied,
    pickled, compiled by ``torch.compile`` and exported by ``torch.export`` (``strict=False``).
    """

    def __init__(self, network: nn.Module, taps: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.taps = taps
        self.keys = tuple(map(str, layers))
        object.__setattr__(self, "network", network)  # its parameters are those of the taps, counted once
        weakref.finalize(self, _release, taps)

    network: nn.Module

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.keys, self.taps(images), strict=True))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        # a graph has containers of its own, and they their own buffers
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        return self


def _release(taps: nn.Module) -> None:
    """A graph and its module refer to each other: let go of the weights at once."""
    for held in (taps._modules, taps._parameters, taps._buffers):
        held.clear()
