"""timm's models: levels and indices as the library declares them, tapped by hooks on its own modules.

timm names a module for each of its feature levels (``feature_info``). Hooks on these modules give the values of
``features_only`` and ``forward_intermediates`` in one pass together with the heads and any other module.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import timm
from huggingface_hub.constants import HF_HUB_CACHE
from timm.data import resolve_data_config
from torch import nn

from featreg.plugin import ExtractionRequest, Preprocess, Size, errors, is_path, synthetic_seed
from featreg_timm import CAPABILITIES
from featreg_timm.hubs import HUBS, hub_cache, read_config
from featreg_timm.likeness import deviations
from featreg_timm.networks import create_network, resample
from featreg_timm.options import OPTIONS, Build, check_build, check_values, read_build
from featreg_timm.sources import begins_with_class, count_prefix_tokens, find_outlets, native_names, tap
from featreg_torch.backend import TorchBackend, Variant
from featreg_torch.blueprint import Blueprint, Plan
from featreg_torch.shapes import build_on_meta
from featreg_torch.weights import Checkpoint

__all__ = ["TimmBackend"]


_ADAPTED = frozenset(("img_size", "in_chans"))
"""The options to which timm brings weights of another shape."""


class TimmBackend(TorchBackend):
    """The backend ``timm``. Model names may carry a tag, as in timm itself: ``resnet50.a1_in1k``.

    Its options ``img_size``, ``in_chans``, ``num_classes`` and ``dynamic_img_size`` are arguments of
    ``timm.create_model``.
    """

    name: ClassVar[str] = "timm"
    options: ClassVar[tuple[str, ...]] = (*TorchBackend.options, *OPTIONS)
    capabilities: ClassVar[tuple[str, ...]] = CAPABILITIES
    package: ClassVar[str | None] = "featreg_timm"
    hubs: ClassVar[tuple[str, ...]] = HUBS

    def models(self) -> Sequence[str]:
        return tuple(timm.list_models())

    def has(self, model: str) -> bool:
        architecture, _, tag = model.partition(".")
        known = timm.is_model(architecture)
        return known and (model == architecture or tag in self.tags(Variant(architecture)))

    def variant(self, model: str) -> Variant:
        architecture, _, tag = model.partition(".")
        return Variant(architecture, tag or None)

    def tags(self, variant: Variant) -> Sequence[str]:
        return [name.partition(".")[2] for name in timm.list_pretrained(f"{variant.model}.*")]

    def default_tag(self, variant: Variant) -> str | None:
        return variant.tag or _config(variant).get("tag") or None

    def cache(self, variant: Variant) -> str:
        if _is_hub(variant):
            return hub_cache(str(variant.tag))
        return HF_HUB_CACHE if _config(variant).get("hf_hub_id") else super().cache(variant)

    def build(self, variant: Variant) -> nn.Module:
        _config(variant)  # of a hub's weights: raises what is wrong with them
        build = _build_of(variant)
        try:
            network = create_network(_full_name(variant), variant.output_stride, build, pretrained=False)
        except (TypeError, ValueError, NotImplementedError, AssertionError) as error:
            if variant.output_stride is None:
                raise
            raise _refusal(variant, error) from error
        check_build(network, variant.model, build)
        return network

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        check_values(options)

    def convert(self, checkpoint: Checkpoint, network: nn.Module, variant: Variant) -> Checkpoint:
        build = _build_of(variant)
        return (
            resample(checkpoint, network, _full_name(variant), build) if _ADAPTED & dict(build).keys() else checkpoint
        )

    def deviations(self, variant: Variant) -> Sequence[str]:
        return deviations(self._blueprint(variant).network, variant.model)

    def supported(self, variant: Variant) -> Sequence[str]:
        if variant.output_stride is None and not _dilates(self, variant.model):
            return [name for name in self.capabilities if name != "output_stride"]
        return self.capabilities

    def plan(self, network: nn.Module, variant: Variant) -> Plan:
        levels, channels = None, dict(_build_of(variant)).get("in_chans", 3)
        if variant.output_stride is not None:  # a level keeps its name when the net is dilated
            whole = attrs.evolve(variant, output_stride=None)
            undilated = find_outlets(build_on_meta(lambda: self.build(whole)), self.native_size(whole), None, channels)
            levels = {outlet.index: outlet.level for outlet in undilated if outlet.index is not None and outlet.level}
        outlets = find_outlets(network, self.native_size(variant), levels, channels)
        names, prefix_tokens = native_names(network, outlets), count_prefix_tokens(network)
        first = begins_with_class(network)
        return Plan(outlets, names, tap, prefix_tokens, class_token=first, channels=channels)

    def preprocess(self, variant: Variant) -> Preprocess:
        config = _data_config(variant)
        _, height, width = config["input_size"]
        scale = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
        fill = tuple(round(255 * value) for value in config["mean"])
        modes = {"center": "shortest", "squash": "exact", "border": "longest"}
        interpolation: Any = "bilinear" if config["interpolation"] == "random" else config["interpolation"]
        return Preprocess(
            resize=scale,
            crop=(height, width),
            mean=config["mean"],
            std=config["std"],
            resize_mode=modes[config["crop_mode"]],  # type: ignore[arg-type]
            interpolation=interpolation,
            fill=fill if config["crop_mode"] == "border" else (0, 0, 0),
        )

    def native_size(self, variant: Variant) -> Size:
        _, height, width = _data_config(variant)["input_size"]
        return (height, width)

    def pretrained(self, variant: Variant, tag: str) -> nn.Module:
        return create_network(_full_name(variant), variant.output_stride, _build_of(variant), pretrained=True)

    def _draw(self, variant: Variant) -> Blueprint:
        """As any backend; whatever timm raises for a network with options of its own is because of them."""
        try:
            return super()._draw(variant)
        except errors.FeatregError:
            raise
        except Exception as error:
            if not _build_of(variant):
                raise
            raise _refusal(variant, error) from error

    def _requested(self, request: ExtractionRequest) -> Variant:
        variant, build = super()._requested(request), read_build(request.options)
        if not build:
            return variant
        variant = BuiltVariant(**attrs.asdict(variant), build=build)
        weights = request.weights
        if weights is not None and synthetic_seed(weights) is None and (_is_hub(variant) or not is_path(weights)):
            _check_classes(variant)
        return variant


@attrs.frozen
class BuiltVariant(Variant):
    """A variant that timm builds with options of its own."""

    build: Build = ()


@functools.cache
def _dilates(backend: TimmBackend, model: str) -> bool:
    """Whether timm can build a model with any output stride at all."""
    for stride in (16, 8):
        try:
            build_on_meta(functools.partial(backend.build, Variant(model, output_stride=stride)))
        except errors.CapabilityError:
            continue
        return True
    return False


def _build_of(variant: Variant) -> Build:
    return variant.build if isinstance(variant, BuiltVariant) else ()


def _refusal(variant: Variant, error: Exception) -> errors.CapabilityError:
    dilation = {} if variant.output_stride is None else {"output_stride": variant.output_stride}
    asked = ", ".join(f"{name}={value}" for name, value in {**dilation, **dict(_build_of(variant))}.items())
    expected = "a stride that timm can reach by dilation, 8, 16 or 32 in most convolutional nets"
    return errors.CapabilityError(
        f"timm:{variant.model} cannot be built with {asked}",
        expected if dilation else "options that timm's network takes",
        str(error),
    )


def _check_classes(variant: BuiltVariant) -> None:
    """Refuse other classes than those of pretrained weights: timm would leave the classifier random."""
    wanted, there = dict(variant.build).get("num_classes"), _config(variant).get("num_classes")
    if wanted not in (None, there):
        raise errors.WeightsError(
            f"the weights {variant.tag or 'default'!r} of timm:{variant.model} have no classifier of {wanted} classes",
            f"num_classes={there}",
            f"num_classes={wanted}",
            remedy="leave the option out, or pass the file of a checkpoint that has one",
        )


def _is_hub(variant: Variant) -> bool:
    return variant.tag is not None and variant.tag.startswith(HUBS)


def _full_name(variant: Variant) -> str:
    """What ``timm.create_model`` takes."""
    if _is_hub(variant):
        return str(variant.tag)
    return f"{variant.model}.{variant.tag}" if variant.tag else variant.model


def _config(variant: Variant) -> dict[str, Any]:
    if _is_hub(variant):
        return read_config(str(variant.tag), variant.model)
    config = timm.get_pretrained_cfg(_full_name(variant))
    return config.to_dict() if config is not None else {}


def _data_config(variant: Variant) -> dict[str, Any]:
    """Timm's preprocessing, for images of the size that the network is built for."""
    size = dict(_build_of(variant)).get("img_size")
    config: dict[str, Any] = resolve_data_config({"input_size": size and (3, *size)}, pretrained_cfg=_config(variant))
    return config
