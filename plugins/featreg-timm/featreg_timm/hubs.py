"""Weights that timm finds by itself: a repository of the Hugging Face Hub, or a folder written by timm."""

from __future__ import annotations

from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from timm.models import load_model_config_from_hf
from timm.models._hub import load_model_config_from_path

from featreg.plugin import errors

__all__ = ["HUBS", "hub_cache", "read_config"]

HUBS = ("hf-hub:", "local-dir:")


def read_config(weights: str, model: str) -> dict[str, Any]:
    """What timm knows of ``"hf-hub:owner/name"`` or ``"local-dir:/path"``, which must be weights of ``model``.

    Raises WeightsError where there is none, or one of another architecture.
    """
    hub, _, place = weights.partition(":")
    try:
        config, architecture, _ = (load_model_config_from_hf if hub == "hf-hub" else load_model_config_from_path)(place)
    except Exception as error:
        raise errors.WeightsError(
            f"timm's config.json of {place!r} cannot be had",
            f"config.json and weights as timm writes them, in {hub_cache(weights)}",
            f"{type(error).__name__}: {error}",
            remedy="load it once while online, or pass the path of a checkpoint file as weights "
            "(weights='/path/to/file.safetensors')",
        ) from error
    if architecture != model:
        raise errors.WeightsError(
            f"{weights!r} holds weights of another architecture",
            model,
            str(architecture),
            remedy=f"open timm:{architecture} with these weights",
        )
    return dict(config)


def hub_cache(weights: str) -> str:
    """Where weights are looked for: the Hub's cache, or the folder itself."""
    hub, _, place = weights.partition(":")
    return HF_HUB_CACHE if hub == "hf-hub" else place
