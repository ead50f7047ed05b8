"""Architectures by name: open_clip's configurations, OpenAI's names for some of them, and what a request adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from featreg.plugin import errors
from featreg_open_clip.hubs import document, is_hub
from featreg_open_clip.library import open_clip
from featreg_torch.backend import Variant

__all__ = [
    "OPENAI",
    "ClipVariant",
    "check_same",
    "configuration",
    "context_length",
    "has_hub_texts",
    "model_configuration",
    "preprocessing",
    "quick_gelu",
    "source",
]

OPENAI = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
"""OpenAI's names that are not open_clip's too: their models have QuickGELU. ``RN50`` and its like are names of both."""

_PARTS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
_IRRELEVANT = (
    "hf_model_pretrained",
    "hf_tokenizer_name",
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "tokenizer_kwargs",
    "tokenizer_mode",
)
"""Entries of a configuration that change neither a tensor nor what evaluation makes of it."""


@attrs.frozen
class ClipVariant(Variant):
    """What a request asks of a network besides its architecture.

    ``default`` is the tag that ``weights="default"`` stands for. ``texts``: the text tower itself is needed, and not
    only the size of its embedding. ``normalize``: embeddings have unit length. ``truncate``: long texts are cut.
    ``prompts`` are the texts that images are compared with.
    """

    default: str | None = None
    texts: bool = False
    normalize: bool = False
    truncate: bool = False
    prompts: tuple[str, ...] = ()


def source(variant: Variant) -> str:
    """Where the configuration is: the repository or folder of the weights, else the model's name."""
    return variant.tag if variant.tag is not None and is_hub(variant.tag) else variant.model


def configuration(variant: Variant) -> Mapping[str, Any]:
    """The model configuration of a variant: that of its weights where they bring their own."""
    return model_configuration(source(variant))


def model_configuration(name: str) -> Mapping[str, Any]:
    """The configuration of a repository, a folder, or of open_clip by exactly this name; else UnknownModelError."""
    if is_hub(name):
        found: Mapping[str, Any] = document(name)["model_cfg"]
        return found
    known = open_clip.list_models()
    if name not in known:
        raise errors.UnknownModelError(
            f"open_clip has no model {name!r}",
            "a configuration of open_clip's, a name of OpenAI's, hf-hub:REPOSITORY or local-dir:FOLDER",
            repr(name),
            errors.near_matches(name, [*known, *OPENAI]),
            "featreg models open_clip lists them all",
        )
    config: Mapping[str, Any] = open_clip.get_model_config(name)
    return config


def preprocessing(variant: Variant) -> Mapping[str, Any]:
    """What the variant's weights say of their preprocessing; what they leave out is open_clip's default."""
    name = source(variant)
    if is_hub(name):
        found: Mapping[str, Any] = document(name)["preprocess_cfg"]
        return found
    return _tagged(variant)


def quick_gelu(variant: Variant) -> bool:
    """Whether a variant has OpenAI's approximation of GELU: its configuration says so, or the tag of its weights."""
    return bool(configuration(variant).get("quick_gelu") or _tagged(variant).get("quick_gelu"))


def has_hub_texts(config: Mapping[str, Any]) -> bool:
    """Whether the text tower is one of Hugging Face transformers, whose configuration lies on its hub."""
    return bool(config["text_cfg"].get("hf_model_name"))


def context_length(config: Mapping[str, Any]) -> int:
    """How many tokens the text tower is given, start and end tokens among them."""
    length: int = config["text_cfg"].get("context_length", CLIPTextCfg.context_length)
    return length


def check_same(model: str, weights: str) -> None:
    """Raise WeightsError unless the weights' own configuration makes the network of ``model``, its activation aside."""
    ours, theirs = (_tensors(model_configuration(name)) for name in (model, weights))
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if differing:
        raise errors.WeightsError(
            f"{weights!r} holds the weights of another architecture than {model}",
            ", ".join(f"{key}={ours.get(key)!r}" for key in differing),
            ", ".join(f"{key}={theirs.get(key)!r}" for key in differing),
            remedy=f"open it by its own name, open_clip:{weights}, with weights='default'",
        )


def _tagged(variant: Variant) -> Mapping[str, Any]:
    """open_clip's entry of a pretrained tag; empty without one."""
    entry: Mapping[str, Any] = open_clip.get_pretrained_cfg(variant.model, variant.tag) if variant.tag else {}
    return entry


def _tensors(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that decide its tensors, defaults filled in."""
    flat = {"embed_dim": config["embed_dim"], "logit_bias": config.get("init_logit_bias") is not None}
    for part, cls in _PARTS.items():
        if part in config:
            entries = {**{name: getattr(cls, name) for name in cls.__dataclass_fields__}, **config[part]}
            flat |= {f"{part}.{name}": _plain(entries[name]) for name in entries if name not in _IRRELEVANT}
    return flat


def _plain(value: Any) -> Any:
    """A size as one number where both sides are equal."""
    if isinstance(value, list | tuple):
        return value[0] if len(value) == 2 and value[0] == value[1] else list(value)
    return value
