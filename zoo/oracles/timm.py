"""timm, by itself: ``create_model``, forward hooks, and the network's own two halves."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import timm
import torch
from torch import nn

from zoo.completeness import Entry
from zoo.oracles.base import Shape, Size
from zoo.oracles.modules import TorchOracle
from zoo.survey import Survey

__all__ = ["TimmOracle"]

FEATURES = "forward_features"
POOLED = "forward_head(pre_logits=True)"
LOGITS = "forward_head"
INTERMEDIATE = re.compile(r"forward_intermediates\[(\d+)\]")
CLASS_TOKEN = re.compile(r"cls_token(_?\d)?")


class TimmOracle(TorchOracle):
    """Outputs that are no module's are named by the methods of timm's networks."""

    @staticmethod
    def models() -> Sequence[str]:
        return tuple(timm.list_models())

    def build(self, device: str) -> nn.Module:
        network: nn.Module = timm.create_model(self.model, pretrained=False)
        return network

    @property
    def prefix_tokens(self) -> int:
        """As the network counts them; else the class token, of which there may be one for each scale."""
        counted = getattr(self.network(), "num_prefix_tokens", None)
        if counted is not None:
            return int(counted)
        tokens = [held for name, held in self.network().named_parameters() if CLASS_TOKEN.fullmatch(name)]
        return max((int(held.shape[1]) for held in tokens), default=0)

    def survey(self, size: Size) -> Survey:
        survey = super().survey(size)
        if survey.classes is None:  # an encoder may have no head to ask
            return survey
        return attrs.evolve(survey, pooled=self.shapes((POOLED,), size).get(POOLED))

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
        """``feature_info``; a network that hands on that of a part means the part's modules (Gemma's encoder)."""
        network = self.network()
        declared = getattr(network, "feature_info", ())
        parts = (name for name, part in network.named_children() if getattr(part, "feature_info", None) is declared)
        prefix = "".join(f"{name}." for name in itertools.islice(parts, 1))
        return [
            Entry((prefix + entry["module"], f"forward_intermediates[{index}]"), entry["reduction"])
            for index, entry in enumerate(declared)
        ]
