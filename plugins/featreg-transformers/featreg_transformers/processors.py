"""What an image processor of the library's does, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from featreg.plugin import Preprocess, Size, errors
from featreg_transformers.hubs import arguments, lacks, reading

__all__ = ["default_processor", "processor_of", "to_preprocess"]

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225), "resample": 3}
_FILES = ("preprocessor_config.json", "processor_config.json")
_WARPED = 384
"""From this size on ConvNeXt's processor sets both sides, and crops nothing."""


def default_processor(model_type: str, size: Size, values: Mapping[str, Any]) -> dict[str, Any]:
    """The processor of a model type with the library's defaults, but for ``values``.

    A type without one has ImageNet's mean and deviation, and images of ``size``.
    """
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type.removesuffix("_vision_model"), {})
    name = values.get("image_processor_type") or names.get("torchvision", "")
    kind = getattr(transformers, f"{name}Pil", None)
    if kind is None:
        return {"size": {"height": size[0], "width": size[1]}, **_IMAGENET, **values}
    found: dict[str, Any] = kind(
        **{key: value for key, value in values.items() if key != "image_processor_type"}
    ).to_dict()
    return found


def processor_of(place: str) -> dict[str, Any] | None:
    """The image processor of a repository or folder; None where it has none. Raises WeightsError for a broken one."""
    with reading(place, "the image processor"):
        if all(lacks(place, file) for file in _FILES):
            return None
        found: dict[str, Any] = AutoImageProcessor.from_pretrained(**arguments(place), backend="pil").to_dict()
    return found


def to_preprocess(values: Mapping[str, Any]) -> Preprocess:
    """A processor as a Preprocess; CapabilityError for one that does something else."""
    resize, crop, mode = _geometry(values)
    scale = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
    normal = values.get("do_normalize", True)
    mean, std = (
        _triple(values[key]) if normal else (none,) * 3 for key, none in (("image_mean", 0.0), ("image_std", 1.0))
    )
    shift = 1.0 if values.get("rescale_offset") else 0.0
    resample = values.get("resample")
    again = _triple(values["image_std"]) if values.get("include_top") else (1.0,) * 3  # EfficientNet's: twice
    return Preprocess(
        resize=resize,
        crop=crop,
        mean=tuple((one + shift) / scale for one in mean),
        std=tuple(one * two / scale for one, two in zip(std, again, strict=True)),
        resize_mode=mode,  # type: ignore[arg-type]
        interpolation=Image.Resampling(2 if resample is None else int(resample)).name.lower(),  # type: ignore[arg-type]
        color="BGR" if values.get("do_flip_channel_order") else "RGB",
        center="down",
    )


def _geometry(values: Mapping[str, Any]) -> tuple[Size | None, Size | None, str]:
    """Resizing, cropping, and the mode of resizing."""
    crop = _sides(values["crop_size"]) if values.get("do_center_crop") else None
    if not values.get("do_resize", True):
        return None, crop, "shortest"
    size = {key: value for key, value in dict(values.get("size") or {}).items() if value is not None}
    if set(size) == {"height", "width"}:
        return _sides(size), crop, "exact"
    if set(size) != {"shortest_edge"} or values.get("size_divisor") or values.get("do_pad"):
        raise errors.CapabilityError(
            "the model's image processor does more than to resize and to crop",
            "a size of 'shortest_edge', or of 'height' and 'width'",
            f"{size}, { ({key: values[key] for key in ('size_divisor', 'do_pad') if values.get(key)}) }",
        )
    side = int(size["shortest_edge"])
    percentage = values.get("crop_pct")
    if percentage is None:
        return (side, side), crop, "shortest"
    if crop is None and side >= _WARPED:
        return (side, side), None, "exact"
    larger = int(side / float(percentage))
    return (larger, larger), crop or (side, side), "shortest"


def _sides(size: Any) -> Size:
    return (int(size["height"]), int(size["width"]))


def _triple(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))
