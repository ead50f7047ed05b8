"""open_clip, by itself: ``create_model``, ``encode_image``, ``encode_text`` and forward hooks."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zoo.completeness import Entry
from zoo.oracles.base import Shape
from zoo.oracles.modules import TorchOracle

__all__ = ["OpenClipOracle"]

ENCODE_IMAGE = "encode_image"
ENCODE_TEXT = "encode_text"
UNPROJECTED = "visual(proj=None)"
TRUNK_FEATURES = "visual.trunk.forward_features"
TRUNK_POOLED = "visual.trunk.forward_head(pre_logits=True)"


class OpenClipOracle(TorchOracle):
    """Embeddings are asked for without normalisation, as the specification has them."""

    has_texts = True

    @staticmethod
    def models() -> Sequence[str]:
        return tuple(importlib.import_module("open_clip").list_models())

    def build(self, device: str) -> nn.Module:
        open_clip: Any = importlib.import_module("open_clip")
        logging.disable(logging.WARNING)  # open_clip logs on the root logger
        try:
            if self._needs_hub:
                return _ImageHalf(open_clip.get_model_config(self.model))
            network: nn.Module = open_clip.create_model(self.model, pretrained=None, device=device, pretrained_hf=False)
        finally:
            logging.disable(logging.NOTSET)
        return network

    @property
    def _needs_hub(self) -> bool:
        """Whether the text tower comes with a configuration of the Hugging Face hub, which is not at hand offline."""
        return bool(importlib.import_module("open_clip").get_model_config(self.model)["text_cfg"].get("hf_model_name"))

    @property
    def unknown(self) -> frozenset[str]:
        return frozenset({ENCODE_TEXT}) if self._needs_hub else frozenset()

    @property
    def prefix_tokens(self) -> int:
        visual = self.network().visual
        if hasattr(visual, "trunk"):
            return int(getattr(visual.trunk, "num_prefix_tokens", 0))
        return 1 if hasattr(visual, "class_embedding") else 0

    def run(self, network: Any, images: torch.Tensor, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
        if UNPROJECTED in names:
            yield UNPROJECTED, _unprojected(network.visual, images)
        if TRUNK_FEATURES in names or TRUNK_POOLED in names:
            features = network.visual.trunk.forward_features(images)
            yield TRUNK_FEATURES, features
            yield TRUNK_POOLED, network.visual.trunk.forward_head(features, pre_logits=True)
        yield ENCODE_IMAGE, network.encode_image(images, normalize=False)
        if ENCODE_TEXT in names - self.unknown:
            length = int(getattr(network, "text", network).context_length)
            yield ENCODE_TEXT, network.encode_text(torch.ones(len(images), length, dtype=torch.long), normalize=False)

    def call(self, network: Any, images: torch.Tensor) -> Any:
        return network.encode_image(images, normalize=False)

    def classes(self, result: Shape | None) -> int | None:
        return None

    @property
    def encoder(self) -> str:
        return "visual"

    def declared(self) -> Sequence[Entry]:
        trunk = getattr(self.network().visual, "trunk", None)
        entries = getattr(trunk, "feature_info", ())
        return [Entry((f"visual.trunk.{entry['module']}",), entry["reduction"]) for entry in entries]


class _ImageHalf(nn.Module):
    """The image tower as open_clip builds it, beside no text tower."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        build: Any = importlib.import_module("open_clip.model")._build_vision_tower
        self.visual = build(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> Any:
        output = self.visual(images)
        return output[0] if isinstance(output, tuple) else output


def _unprojected(visual: Any, images: torch.Tensor) -> Any:
    """What a tower gives with its projection taken off."""
    projection, visual.proj = visual.proj, None
    try:
        output = visual(images)
    finally:
        visual.proj = projection
    return output[0] if isinstance(output, tuple) else output
