"""Preprocessing and weights as torchvision's enums of weights have them."""

from __future__ import annotations

import functools
from typing import Any

from torchvision.models import get_model_weights
from torchvision.transforms import InterpolationMode

from featreg.plugin import Preprocess, Size
from featreg_torch.shapes import build_on_meta
from featreg_torchvision.networks import build_network, family, float_twin, is_vit

__all__ = ["find_weights", "native_size", "preprocess", "weights_of"]


def weights_of(model: str) -> dict[str, Any]:
    """The weights of a model by tag: those of its floating-point twin, then its own."""
    known = [*get_model_weights(float_twin(model)), *get_model_weights(model)]
    return {weights.name: weights for weights in known}


def find_weights(model: str, tag: str | None) -> Any:
    """The weights of a tag such as ``IMAGENET1K_V2``; for None those whose preprocessing fits the model as built.

    That is torchvision's default, but for vit_h_14, which is built for 224 pixels where its default weights want 518.
    None where there are no weights at all.
    """
    if tag is not None:
        return weights_of(model)[tag]
    known = get_model_weights(float_twin(model))
    fitting = [known["DEFAULT"], *known]
    if is_vit(model):
        return next((one for one in fitting if one.meta["min_size"] == (224, 224)), fitting[0])
    return fitting[0]


def preprocess(model: str, tag: str | None) -> Preprocess:
    """The preprocessing of a model's weights.

    A detector's preset leaves the image as it is: its network resizes and normalises. Here this is preprocessing, since
    the backbone alone runs; the bound that the network sets to the longer side is left out.
    """
    kind = family(model)
    if kind == "detection":
        return _detector_preprocess(model)
    if kind == "optical_flow":  # from -1 to 1, said in the code of the preset alone
        return Preprocess(resize=None, crop=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    transform = _transform(model, tag)
    (resize,), crop = transform.resize_size, getattr(transform, "crop_size", None)
    interpolation: Any = InterpolationMode(transform.interpolation).value
    return Preprocess(
        resize=(resize, resize),
        crop=None if crop is None else (crop[0], crop[0]),
        mean=transform.mean,
        std=transform.std,
        interpolation=interpolation,
    )


def native_size(model: str, tag: str | None) -> Size:
    """The (height, width) that weights were trained for: the crop, else the side that images are resized to."""
    known = preprocess(model, tag)
    smallest: Size = find_weights(model, tag).meta["min_size"]
    return known.crop or known.resize or smallest


@functools.cache
def _detector_preprocess(model: str) -> Preprocess:
    network: Any = build_on_meta(lambda: build_network(model))
    transform = network.transform
    side, fixed = transform.min_size[-1], transform.fixed_size  # the last side serves evaluation
    return Preprocess(
        resize=fixed[::-1] if fixed else (side, side),
        resize_mode="exact" if fixed else "shortest",
        crop=None,
        mean=transform.image_mean,
        std=transform.image_std,
    )


@functools.cache
def _transform(model: str, tag: str | None) -> Any:
    transform: Any = find_weights(model, tag).transforms()
    return transform
