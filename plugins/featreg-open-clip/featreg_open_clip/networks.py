"""open_clip's networks, built for what is asked of them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from torch import nn

from featreg_open_clip.architectures import (
    ClipVariant,
    configuration,
    context_length,
    has_hub_texts,
    quick_gelu,
    source,
)
from featreg_open_clip.hubs import folder
from featreg_open_clip.library import open_clip
from featreg_open_clip.texts import Tokenizer, hub_files
from featreg_torch.state import factory_defaults

__all__ = ["build_network", "encode_prompts", "has_stand_in", "load_network", "ready_for_meta"]


def has_stand_in(variant: ClipVariant) -> bool:
    """Whether the text tower is replaced by a small one, since Hugging Face's is not needed and may not be at hand."""
    return has_hub_texts(configuration(variant)) and not variant.texts


def build_network(variant: ClipVariant) -> nn.Module:
    """The network with random weights."""
    name = source(variant)
    # a repository's weights would be downloaded along with it: its configuration alone is in a folder of the cache
    network = _create(variant, f"local-dir:{folder(name)}" if name.startswith("hf-hub:") else name, load_weights=False)
    if isinstance(network, CoCa):  # open_clip leaves this one as it finds it in memory
        projection = network.text_decoder.text_projection
        nn.init.normal_(projection, std=len(projection) ** -0.5)
    return network


def load_network(variant: ClipVariant, tag: str) -> nn.Module:
    """The network with the weights of one of open_clip's tags, by its own loader; raises whatever that raises."""
    return _create(variant, variant.model, pretrained=tag, require_pretrained=True)


def encode_prompts(network: Any, variant: ClipVariant) -> None:
    """Fill the network's buffer ``prompts`` (M, D) with the embeddings of the variant's texts, of unit length."""
    tokens = Tokenizer(source(variant), variant.truncate)(variant.prompts)
    with torch.no_grad(), factory_defaults("cpu"), torch.autocast("cpu", enabled=False):
        network.prompts.copy_(network.eval().encode_text(tokens, normalize=True))


def ready_for_meta(network: Any) -> None:
    """Let Hugging Face's transformers run on the meta device, where they cannot look into a mask."""
    if isinstance(getattr(network, "text", None), HFTextEncoder):
        network.text.transformer.register_forward_pre_hook(
            lambda _, arguments, named: (arguments, {**named, "attention_mask": None}), with_kwargs=True
        )


def _create(variant: ClipVariant, name: str, **arguments: Any) -> nn.Module:
    with hub_files(f"the text tower of open_clip:{variant.model}"):
        if has_stand_in(variant):
            arguments["text_cfg"] = _stand_in(variant)
        elif has_hub_texts(configuration(variant)):
            importlib.import_module("transformers")
        # without the device the network would be moved to the CPU, without pretrained_text its text tower be downloaded
        network: nn.Module = open_clip.create_model(
            name,
            device=torch.get_default_device(),
            pretrained_text=False,
            force_quick_gelu=quick_gelu(variant),
            **arguments,
        )
    if variant.prompts:
        size = (len(variant.prompts), configuration(variant)["embed_dim"])
        network.register_buffer("prompts", torch.zeros(size), persistent=False)
    return network


def _stand_in(variant: ClipVariant) -> dict[str, Any]:
    """The configuration of the smallest text tower whose embedding is of the right size."""
    config = configuration(variant)
    return {
        "context_length": context_length(config),
        "vocab_size": 1,
        "width": 1,
        "heads": 1,
        "layers": 1,
        "output_tokens": config["text_cfg"].get("output_tokens", False),
    }
