"""timm, by itself: ``create_model``, forward hooks, and the network's own two halves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import timm
import torch
from torch import nn

from zoo.completeness import Entry
from zoo.oracles.base import Shape
from zoo.oracles.modules import TorchOracle

__all__ = ["TimmOracle"]

FEATURES = "forward_features"
POOLED = "forward_head(pre_logits=True)"
LOGITS = "forward_head"
INTERMEDIATE = re.compile(r"forward_intermediates\[(\d+)\]")


class TimmOracle(TorchOracle):
    """Outputs that are no module's are named by the methods of timm's networks."""

    @staticmethod
    def models() -> Sequence[str]:
        return tuple(timm.list_models())

    def build(self, device: str) -> nn.Module:
        network: nn.Module = timm.create_model(self.model, pretrained=False)
        return network

    def run(self, network: Any, images: torch.Tensor, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
        asked = sorted(int(found[1]) for name in names if (found := INTERMEDIATE.fullmatch(name)))
        if asked:  # first: where modules run in both passes, the whole network's counts
            made = network.forward_intermediates(images, indices=asked, intermediates_only=True)
            yield from ((f"forward_intermediates[{index}]", output) for index, output in zip(asked, made, strict=True))
        features = network.forward_features(images)
        yield FEATURES, features
        if POOLED in names:
            yield POOLED, network.forward_head(features, pre_logits=True)
        if LOGITS in names:
            yield LOGITS, network.forward_head(features)

    def call(self, network: Any, images: torch.Tensor) -> Any:
        return network(images)

    def classes(self, result: Shape | None) -> int | None:
        return int(self.network().num_classes) or None

    def declared(self) -> Sequence[Entry]:
        entries = enumerate(getattr(self.network(), "feature_info", ()))
        return [
            Entry((entry["module"], f"forward_intermediates[{index}]"), entry["reduction"]) for index, entry in entries
        ]
