"""torchvision's classification models, tapped through torch.fx at any node, with inferred levels."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torchvision
from torch import nn
from torchvision.models import get_model, get_model_builder, get_model_weights, list_models
from torchvision.transforms import InterpolationMode

from featreg.plugin import Preprocess, Size, errors
from featreg_torch import CAPABILITIES
from featreg_torch.backend import TorchBackend, Variant
from featreg_torch.blueprint import Plan
from featreg_torchvision.graph import Trace, tap_graph
from featreg_torchvision.levels import find_outlets

__all__ = ["TorchvisionBackend"]


class TorchvisionBackend(TorchBackend):
    """The backend ``torchvision``.

    An extractor runs the traced graph, which shares leaf modules and parameters with ``extractor.module``:
    training and replacing weights reach it, hooks on containers and replaced sub-modules do not.
    """

    name: ClassVar[str] = "torchvision"
    capabilities: ClassVar[tuple[str, ...]] = CAPABILITIES

    def models(self) -> Sequence[str]:
        return tuple(list_models(module=torchvision.models))

    def has(self, model: str) -> bool:
        return model in list_models()

    def build(self, variant: Variant) -> nn.Module:
        if variant.model not in self.models():
            raise errors.CapabilityError(
                f"torchvision:{variant.model} is no image classification model",
                "one of torchvision's classification models",
                remedy="featreg models torchvision lists them",
            )
        options: dict[str, Any] = {"image_size": self.native_size(variant)[0]} if _is_vit(variant.model) else {}
        if variant.tag is not None and _transforms_input(variant.model):
            options["transform_input"] = True  # as torchvision does for its own weights
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception_v3, of their initialisation
            network: nn.Module = get_model(variant.model, weights=None, **options)
        return network

    def plan(self, network: nn.Module, variant: Variant) -> Plan:
        trace = Trace(network)
        prefix = 1 if isinstance(network, torchvision.models.VisionTransformer) else 0
        outlets = find_outlets(trace, self.native_size(variant))
        return Plan(outlets, trace.names(), functools.partial(tap_graph, trace), prefix)

    def default_tag(self, variant: Variant) -> str:
        return str(get_model_weights(variant.model)["DEFAULT"].name)

    def preprocess(self, variant: Variant) -> Preprocess:
        transform = _transform(variant.model, variant.tag)
        (resize,), (crop,) = transform.resize_size, transform.crop_size
        return Preprocess(
            resize=(resize, resize),
            crop=(crop, crop),
            mean=transform.mean,
            std=transform.std,
            interpolation=InterpolationMode(transform.interpolation).value,
        )

    def native_size(self, variant: Variant) -> Size:
        (crop,) = _transform(variant.model, variant.tag).crop_size
        return (crop, crop)

    def tags(self, variant: Variant) -> Sequence[str]:
        return tuple(get_model_weights(variant.model).__members__)

    def pretrained(self, variant: Variant, tag: str) -> nn.Module:
        network: nn.Module = get_model(variant.model, weights=_weights(variant.model, tag), progress=False)
        return network


def _is_vit(model: str) -> bool:
    """Whether a model is built for one image size, which its weights then say (``min_size``)."""
    return inspect.signature(get_model_builder(model)).return_annotation is torchvision.models.VisionTransformer


def _transforms_input(model: str) -> bool:
    """Whether a model can undo the normalisation of the weights it was ported from (GoogLeNet, Inception)."""
    return (
        "transform_input" in inspect.signature(inspect.signature(get_model_builder(model)).return_annotation).parameters
    )


def _weights(model: str, tag: str | None) -> Any:
    """The weights of a tag such as ``IMAGENET1K_V2``; for None those whose preprocessing fits the model as built.

    That is torchvision's default, but for vit_h_14, which is built for 224 pixels where its default weights want 518.
    """
    known = get_model_weights(model)
    if tag is None:
        fitting = [known["DEFAULT"], *known]
        return (
            next((one for one in fitting if one.meta["min_size"] == (224, 224)), fitting[0])
            if _is_vit(model)
            else fitting[0]
        )
    return known[tag]


@functools.cache
def _transform(model: str, tag: str | None) -> Any:
    transform: Any = _weights(model, tag).transforms()
    return transform
