"""open_clip's models: image towers tapped by hooks on their own modules, text towers through their embedding.

Embeddings are never normalised: CLIP leaves that to the caller, and so does this backend for CoCa, whose own default is
to normalise.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from open_clip.coca_model import CoCa
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import nn

from featreg.plugin import ExtractionRequest, Preprocess, Size, errors
from featreg_open_clip import CAPABILITIES
from featreg_open_clip.library import muted, open_clip
from featreg_open_clip.texts import Tokenizer, hub_files
from featreg_open_clip.towers import ENCODE_IMAGE, find_tower
from featreg_torch.backend import TorchBackend, Variant
from featreg_torch.blueprint import Plan
from featreg_torch.extractor import TorchExtractor
from featreg_torch.taps import HookTaps, Outlet

__all__ = ["OpenClipBackend", "OpenClipExtractor"]

ENCODE_TEXT = "encode_text"
OPTIONS = ("truncate",)
RESIZE_MODES: Mapping[str, Literal["shortest", "longest", "exact"]] = {
    "shortest": "shortest",
    "longest": "longest",
    "squash": "exact",
}


class OpenClipBackend(TorchBackend):
    """The backend ``open_clip``. Model names are those of its configurations; a tag of weights goes into ``weights``.

    Its one option is ``truncate``: with True, texts longer than the context are cut; else they raise InputError.
    """

    name: ClassVar[str] = "open_clip"
    capabilities: ClassVar[tuple[str, ...]] = CAPABILITIES

    def models(self) -> Sequence[str]:
        return tuple(open_clip.list_models())

    def variant(self, model: str) -> Variant:
        _config(model)
        return Variant(model)

    def tags(self, variant: Variant) -> Sequence[str]:
        return tuple(open_clip.list_pretrained_tags_by_model(variant.model))

    def default_tag(self, variant: Variant) -> str:
        tags = self.tags(variant)
        raise errors.WeightsError(
            f"open_clip has no default weights for {variant.model}",
            f"one of {', '.join(tags)}" if tags else "None: open_clip has no pretrained weights for this model",
            "'default'",
            remedy="name a tag, or pass the path of a checkpoint file",
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        for option in options:
            if option not in OPTIONS:
                raise errors.CapabilityError(
                    f"the backend {self.name!r} has no option {option!r}",
                    f"some of {', '.join(OPTIONS)}",
                    repr(option),
                    errors.near_matches(option, OPTIONS),
                )
        if not isinstance(options.get("truncate", False), bool):
            raise errors.SpecError("the option 'truncate' is a switch", "true or false", repr(options["truncate"]))

    def build(self, variant: Variant) -> nn.Module:
        text_config = _config(variant.model)["text_cfg"]
        with muted(), hub_files(f"the text tower of open_clip:{variant.model}"):
            if text_config.get("hf_model_name"):
                importlib.import_module("transformers")
            network = _create(variant.model)
        if isinstance(network, CoCa):  # open_clip leaves this one as it finds it in memory
            projection = network.text_decoder.text_projection
            nn.init.normal_(projection, std=len(projection) ** -0.5)
        return network

    def plan(self, network: nn.Module, variant: Variant) -> Plan:
        tower = find_tower(network)
        heads = [Outlet(ENCODE_IMAGE, head="embedding"), Outlet(ENCODE_TEXT, head="text_embedding")]
        modules = [name for name, _ in network.named_modules() if name and not name.startswith(tower.hidden)]
        names = [*modules, *tower.sources, ENCODE_IMAGE, ENCODE_TEXT]
        taps = functools.partial(HookTaps, run=_run)
        return Plan([*tower.outlets(), *heads], names, taps, tower.prefix_tokens)

    def preprocess(self, variant: Variant) -> Preprocess:
        tagged = open_clip.get_pretrained_cfg(variant.model, variant.tag) if variant.tag else {}
        config = merge_preprocess_dict(PreprocessCfg(), tagged)
        size = self.native_size(variant)
        return Preprocess(
            resize=size,
            crop=size,
            mean=config["mean"],
            std=config["std"],
            resize_mode=RESIZE_MODES[config["resize_mode"]],
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",  # as open_clip has it
            fill=config["fill_color"],
        )

    def native_size(self, variant: Variant) -> Size:
        size = _config(variant.model)["vision_cfg"].get("image_size", open_clip.CLIPVisionCfg.image_size)
        height, width = (size, size) if isinstance(size, int) else size
        return (height, width)

    def pretrained(self, variant: Variant, tag: str) -> nn.Module:
        config = open_clip.get_pretrained_cfg(variant.model, tag)
        origin = config.get("hf_hub") or config.get("url") or config.get("file")
        cache = HF_HUB_CACHE if config.get("hf_hub") else Path("~/.cache/clip").expanduser()
        try:
            with muted():
                return _create(variant.model, tag)
        except Exception as error:
            raise errors.WeightsError(
                f"the pretrained weights {tag!r} of open_clip:{variant.model} cannot be had",
                f"{origin}, from the network or from the cache {cache}",
                f"{type(error).__name__}: {error}",
                remedy="load them once while online, or pass the path of a checkpoint file as weights",
            ) from error

    def extractor(self, request: ExtractionRequest, **parts: Any) -> TorchExtractor:
        texts = any(feature.head == "text_embedding" for feature in parts["features"])
        tokenizer = Tokenizer(request.model, **request.options) if texts else None
        return OpenClipExtractor(tokenizer, **parts)


class OpenClipExtractor(TorchExtractor):
    """Takes images, or texts where it has a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, **parts: Any) -> None:
        super().__init__(**parts)
        self._tokenizer = tokenizer

    def prepare(self, batch: Any) -> torch.Tensor:
        """Images as every torch extractor takes them; a list of texts becomes tokens (N, context length)."""
        if self._tokenizer is None:
            return super().prepare(batch)
        return self._tokenizer(batch).to(self._device)


def _config(model: str) -> Mapping[str, Any]:
    """open_clip's configuration of an architecture, by exactly this name; UnknownModelError where it has none."""
    known = open_clip.list_models()
    if model not in known:
        raise errors.UnknownModelError(
            f"open_clip has no model {model!r}",
            got=repr(model),
            matches=errors.near_matches(model, known),
            remedy="featreg models open_clip lists them all",
        )
    config: Mapping[str, Any] = open_clip.get_model_config(model)
    return config


def _create(model: str, tag: str | None = None) -> nn.Module:
    # without the device the network would be moved to the CPU, without pretrained_hf its text tower be downloaded
    network: nn.Module = open_clip.create_model(
        model, pretrained=tag, device=torch.get_default_device(), pretrained_hf=False
    )
    return network


def _run(network: Any, inputs: torch.Tensor, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Run the tower that the inputs are for: images are floating point, tokens whole numbers."""
    if not inputs.is_floating_point():
        yield ENCODE_TEXT, network.encode_text(inputs, normalize=False)
        return
    if ENCODE_TEXT in wanted and inputs.is_meta:  # shapes of both towers are found in one go
        tokens = torch.empty(len(inputs), _context_length(network), dtype=torch.long, device="meta")
        yield ENCODE_TEXT, network.encode_text(tokens, normalize=False)
    yield from find_tower(network).run(inputs, wanted)


def _context_length(network: Any) -> int:
    return int(getattr(network, "text", network).context_length)
