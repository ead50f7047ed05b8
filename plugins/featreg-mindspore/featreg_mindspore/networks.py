"""mindcv's networks, and what its configurations say of their images."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

from featreg.plugin import Preprocess, Size, errors
from featreg_mindspore.fake import unfilled
from featreg_mindspore.libraries import mindcv
from featreg_mindspore.runtime import eager, seeded
from featreg_mindspore.trace import message

__all__ = ["build", "default_size", "preprocess"]

_SEED = 0
_SIDE = 224


def build(model: str, *, filled: bool = True, **options: Any) -> Any:
    """The network in evaluation mode, with the same random weights each time; with any values where not ``filled``.

    Raises CapabilityError where mindcv itself cannot build it, with its own error chained.
    """
    mode: AbstractContextManager[None] = eager() if filled else unfilled()
    with mode, seeded(_SEED):
        try:
            network = mindcv.create_model(model, **options)
        except Exception as error:
            raise errors.CapabilityError(
                f"mindcv cannot build its own model {model!r}",
                got=message(error),
                remedy="choose another model, or another version of mindspore or mindcv",
            ) from error
    return network.set_train(False)


def default_size(model: str) -> Size:
    """The (height, width) of mindcv's configuration, 224x224 where it has none."""
    _, height, width = mindcv.models.registry.get_pretrained_cfg(model).get("input_size", (3, _SIDE, _SIDE))
    return int(height), int(width)


def preprocess(model: str, size: Size) -> Preprocess:
    """The evaluation transform of mindcv (``mindcv.data.transforms_factory``) for images of this size, as data.

    Its configurations give mean and std on the scale of 0 to 255 or on that of 0 to 1.
    """
    config = mindcv.models.registry.get_pretrained_cfg(model)
    constants = mindcv.data.constants
    crop_pct = config.get("crop_pct") or constants.DEFAULT_CROP_PCT
    mean = _unit_scale(config.get("mean", constants.IMAGENET_DEFAULT_MEAN))
    std = _unit_scale(config.get("std", constants.IMAGENET_DEFAULT_STD))
    resize = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))
    return Preprocess(resize, size, mean, std, interpolation=config.get("interpolation") or "bilinear")


def _unit_scale(values: Any) -> tuple[float, float, float]:
    scale = 255.0 if max(values) > 1 else 1.0
    red, green, blue = (float(value) / scale for value in values)
    return red, green, blue
