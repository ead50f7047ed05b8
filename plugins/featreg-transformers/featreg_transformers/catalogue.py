"""Models by name: those whose configurations this package knows (``models.toml``), and the library's model types."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import attrs
from transformers.models.auto import modeling_auto as auto

__all__ = ["TOWERS", "Published", "model_types", "published"]

TOWERS = {
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "metaclip_2_vision_model": "MetaClip2VisionModelWithProjection",
    "siglip_vision_model": "SiglipVisionModel",
}
"""Model types of image towers that are published together with a text tower, and the class that gives embeddings."""

_WITH_TEXTS = ("clip", "metaclip_2", "siglip")
"""The model types of both towers together, which take more than images."""


@attrs.frozen
class Published:
    """A checkpoint on the hub: what its configuration and its image processor have besides the library's defaults."""

    repository: str
    type: str
    architecture: str
    config: Mapping[str, Any] = attrs.field(eq=False)
    processor: Mapping[str, Any] = attrs.field(eq=False)


@functools.cache
def published() -> Mapping[str, Published]:
    """The known checkpoints by name: their repository without its owner."""
    families = tomllib.loads((files(__package__) / "models.toml").read_text("utf-8"))["family"]
    found = {}
    for family in families:
        common = {**family.get("config", {}), **({"num_labels": family["labels"]} if "labels" in family else {})}
        for repository, own in family["models"].items():
            found[repository.partition("/")[2]] = Published(
                repository, family["type"], family["architecture"], {**common, **own}, family.get("processor", {})
            )
    return MappingProxyType(found)


@functools.cache
def model_types() -> tuple[str, ...]:
    """The library's model types that take images: those that its AutoModel, AutoBackbone and classifiers have."""
    known = {
        *auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
        *auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
        *TOWERS,
    }
    return tuple(sorted(known - set(_WITH_TEXTS)))
