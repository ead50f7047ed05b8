"""open_clip's models: image towers and text towers, tapped by hooks on their own modules.

Embeddings are not normalised unless that is asked for: CLIP leaves it to the caller, and so does this backend for CoCa,
whose own default is to normalise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import nn

from featreg.plugin import ExtractionRequest, Preprocess, Size, errors
from featreg_open_clip import CAPABILITIES
from featreg_open_clip.architectures import (
    OPENAI,
    ClipVariant,
    check_same,
    configuration,
    context_length,
    has_hub_texts,
    model_configuration,
    preprocessing,
    source,
)
from featreg_open_clip.checkpoints import check_archive, converted, find_checkpoint, finding_weights, without_texts
from featreg_open_clip.hubs import CONFIGURATION, HUBS, is_hub
from featreg_open_clip.library import muted, open_clip
from featreg_open_clip.networks import build_network, encode_prompts, has_stand_in, load_network, ready_for_meta
from featreg_open_clip.options import OPTIONS, check_use, check_values, wants_texts
from featreg_open_clip.similarity import keep_scale
from featreg_open_clip.texts import Tokenizer
from featreg_open_clip.towers import ENCODE_IMAGE, ENCODE_TEXT, LOGITS, Run, find_tower, is_text
from featreg_torch.backend import TorchBackend, Variant
from featreg_torch.blueprint import Plan
from featreg_torch.declared import has_class_token
from featreg_torch.extractor import TorchExtractor
from featreg_torch.identity import watch_hub
from featreg_torch.taps import HookTaps, Outlet
from featreg_torch.weights import Checkpoint, load_into, read_checkpoint

__all__ = ["OpenClipBackend", "OpenClipExtractor"]

RESIZE_MODES: Mapping[str, Literal["shortest", "longest", "exact"]] = {
    "shortest": "shortest",
    "longest": "longest",
    "squash": "exact",
}


class OpenClipBackend(TorchBackend):
    """The backend ``open_clip``.

    Model names are those of its configurations, OpenAI's (``"ViT-B/32"``), and ``hf-hub:REPOSITORY`` and
    ``local-dir:FOLDER``, which are weights as well; a tag of weights goes into ``weights``. Its options:

    - ``truncate``: with True, texts longer than the context are cut; else they raise InputError.
    - ``normalize``: with True, ``embedding`` and ``text_embedding`` have unit length.
    - ``texts``: what the layer ``logits`` compares each image with.
    """

    name: ClassVar[str] = "open_clip"
    capabilities: ClassVar[tuple[str, ...]] = CAPABILITIES
    package: ClassVar[str | None] = "featreg_open_clip"
    hubs: ClassVar[tuple[str, ...]] = HUBS
    hub_file: ClassVar[str] = CONFIGURATION
    options: ClassVar[tuple[str, ...]] = (*TorchBackend.options, *OPTIONS)

    def models(self) -> Sequence[str]:
        return tuple(open_clip.list_models())

    def has(self, model: str) -> bool:
        return model in OPENAI or is_hub(model) or model in self.models()

    def variant(self, model: str) -> ClipVariant:
        if model in OPENAI:
            return ClipVariant(OPENAI[model], default="openai")
        model_configuration(model)
        return ClipVariant(model, default=model if is_hub(model) else None)

    def tags(self, variant: Variant) -> Sequence[str]:
        return tuple(open_clip.list_pretrained_tags_by_model(variant.model))

    def default_tag(self, variant: Variant) -> str:
        assert isinstance(variant, ClipVariant)
        tags = self.tags(variant)
        if variant.default is not None:
            return variant.default
        if len(tags) == 1:
            return tags[0]
        raise errors.WeightsError(
            f"open_clip has no default weights for {variant.model}",
            f"one of {', '.join(tags)}" if tags else "None: open_clip has no pretrained weights for this model",
            "'default'",
            remedy="name a tag, or pass the path of a checkpoint file",
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        check_values(options)

    def build(self, variant: Variant) -> nn.Module:
        assert isinstance(variant, ClipVariant)
        with muted():
            return build_network(variant)

    def plan(self, network: nn.Module, variant: Variant) -> Plan:
        assert isinstance(variant, ClipVariant)
        ready_for_meta(network)
        tower, config = find_tower(network), configuration(variant)
        heads = [Outlet(ENCODE_IMAGE, head="embedding"), Outlet(ENCODE_TEXT, head="text_embedding")]
        if variant.prompts:
            heads.append(Outlet(LOGITS, head="logits"))
        modules = [name for name, _ in network.named_modules() if name]
        texts = [] if has_stand_in(variant) else list(filter(is_text, modules))
        names = [*(name for name in modules if not is_text(name)), *texts, *tower.sources]
        run = Run(context_length(config), variant.normalize)
        return Plan(
            [*tower.outlets(), *heads],
            [*names, *(head.source for head in heads)],
            functools.partial(HookTaps, run=run),
            tower.prefix_tokens,
            frozenset((*texts, *tower.queries)),
            tower.stored,
            has_class_token(tower.visual),
        )

    def preprocess(self, variant: Variant) -> Preprocess:
        config = merge_preprocess_dict(PreprocessCfg(), dict(preprocessing(variant)))
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
        size = configuration(variant)["vision_cfg"].get("image_size", open_clip.CLIPVisionCfg.image_size)
        height, width = (size, size) if isinstance(size, int) else size
        return (height, width)

    def pretrained(self, variant: Variant, tag: str) -> nn.Module:
        assert isinstance(variant, ClipVariant)
        with muted(), finding_weights(variant, tag):
            if not is_hub(tag) and not has_stand_in(variant):
                return load_network(variant, tag)
            network, path = build_network(variant), find_checkpoint(variant, tag)
        load_into(network, self.convert(read_checkpoint(path), network, variant))
        return network

    def convert(self, checkpoint: Checkpoint, network: nn.Module, variant: Variant) -> Checkpoint:
        assert isinstance(variant, ClipVariant)
        state = converted(network, checkpoint.state, variant)
        return attrs.evolve(checkpoint, state=without_texts(network, state) if has_stand_in(variant) else state)

    def finish(self, network: nn.Module, variant: Variant) -> None:
        assert isinstance(variant, ClipVariant)
        if variant.prompts:
            encode_prompts(network, variant)
        keep_scale(network)

    def extractor(self, request: ExtractionRequest, **parts: Any) -> TorchExtractor:
        if not wants_texts(request.layers[0]):
            return OpenClipExtractor(None, **parts)
        variant = self._requested(request)
        return OpenClipExtractor(Tokenizer(source(variant), variant.truncate), **parts)

    def identity(self, request: ExtractionRequest) -> Callable[[], str | None]:
        """As of every torch backend, after that of the repository or folder that the model itself is."""
        weights, place = super().identity(request), source(self._requested(request))
        if not is_hub(place) or place == request.weights:
            return weights
        model = watch_hub(place, self.hub_file)
        return lambda: "; ".join(part for part in (model(), weights()) if part is not None) or None

    def _requested(self, request: ExtractionRequest) -> ClipVariant:
        check_use(request)
        variant: Any = super()._requested(request)
        if variant.tag is not None and is_hub(variant.tag):
            check_same(variant.model, variant.tag)
        options = request.options
        prompts = tuple(options.get("texts", ()))
        texts = bool(prompts) or wants_texts(request.layers[0])
        asked: ClipVariant = attrs.evolve(
            variant,
            texts=texts and has_hub_texts(configuration(variant)),
            normalize=options.get("normalize", False),
            truncate=options.get("truncate", False),
            prompts=prompts,
        )
        return asked

    def _checkpoint(self, request: ExtractionRequest) -> Checkpoint | None:
        if request.weights is not None and not is_hub(request.weights):
            check_archive(request.weights)
        return super()._checkpoint(request)


class OpenClipExtractor(TorchExtractor):
    """Takes images, or texts where it has a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, **parts: Any) -> None:
        super().__init__(**parts)
        self._tokenizer = tokenizer

    @property
    def takes_text(self) -> bool:
        return self._tokenizer is not None

    def prepare(self, batch: Any) -> torch.Tensor:
        """Images as every torch extractor takes them; a list of texts becomes tokens (N, context length)."""
        if self._tokenizer is None:
            return super().prepare(batch)
        return self._tokenizer(batch).to(self._device)
