"""RGB to the model's crop, bit-equal to the libraries' own Pillow transforms.

The sizes follow torchvision 0.29 (``transforms.functional.resize`` and ``center_crop``), timm 1.0.31
(``data.transforms.ResizeKeepRatio``, ``CenterCropOrPad``) and open_clip 3.3 (``transform.image_transform``); the centre
of transformers 5.23 (``image_transforms.center_crop``) is rounded down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import numpy as np

from featreg.errors import ImageError, RequestError, SpecError
from featreg.extras import data_extra
from featreg.images import Pixels, check_size, decode
from featreg.spec import Preprocess, Size

with data_extra():
    from PIL import Image, ImageOps

__all__ = ["crop", "crop_size", "load_images"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def crop(image: Pixels, preprocess: Preprocess) -> Pixels:
    """An RGB image (H, W, 3) resized and cropped or padded around its centre, (h, w, 3).

    Raises ImageError where the image is so narrow that the resized one would be empty or beyond ``images.MAX_PIXELS``.
    """
    picture = Image.fromarray(image)
    if preprocess.resize is not None:
        picture = _resize(picture, preprocess)
    if preprocess.crop is not None:
        picture = _center_crop(picture, preprocess.crop, preprocess)
    return np.array(picture)


def crop_size(preprocess: Preprocess) -> Size | None:
    """The (height, width) of every crop, or None where it depends on the image."""
    if preprocess.crop is None and preprocess.resize_mode == "exact":
        return preprocess.resize
    return preprocess.crop


def load_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], preprocess: Preprocess) -> Pixels:
    """Image files, one or many, as one batch of crops: uint8 RGB of (N, 3, H, W), ready for an extractor.

    Raises ImageError that names the file which cannot be read, SpecError for anything but paths and a Preprocess, and
    RequestError where ``paths`` is empty or the crops differ in size because ``preprocess`` crops to none.
    """
    if not isinstance(preprocess, Preprocess):
        raise SpecError(
            "preprocess says how to crop images, and is none",
            "a Preprocess",
            type(preprocess).__name__,
            remedy="pass extractor.preprocess",
        )
    files = _files(paths)
    if not files:
        raise RequestError("no image to load", "at least one path")
    crops = [_load(path, preprocess) for path in files]
    sizes = {image.shape[:2]: path for path, image in zip(files, crops, strict=True)}
    if len(sizes) > 1:
        raise RequestError(
            "the images have different sizes and cannot be one batch",
            "crops of one size",
            ", ".join(f"{height}x{width} ({path})" for (height, width), path in list(sizes.items())[:3]),
            remedy="give a Preprocess with a crop size (attrs.evolve(preprocess, crop=(224, 224))), or load one by one",
        )
    return np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2))


def _files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """One or many paths as strings; raises SpecError for anything else."""
    several = [paths] if isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable) else paths
    return [_file(path) for path in several]


def _file(path: object) -> str:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise SpecError(
            "images are loaded from paths",
            "strings or pathlib.Path, one or many",
            type(path).__name__,
            remedy="give an extractor the pixels themselves, as uint8 RGB of (N, 3, H, W)",
        )
    return text


def _load(path: str, preprocess: Preprocess) -> Pixels:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL, which no file name has
        raise ImageError(f"{path!r} cannot be read", got=getattr(error, "strerror", None) or str(error)) from error
    try:
        return crop(decode(data), preprocess)
    except ImageError as error:
        raise ImageError(
            f"{path!r}: {error.problem}", error.expected, error.got, error.matches, error.remedy
        ) from error


def _resize(picture: Image.Image, preprocess: Preprocess) -> Image.Image:
    width, height = picture.size
    new_height, new_width = resized(height, width, preprocess)
    check_size(new_width, new_height, f"an image of {width}x{height}, resized to {new_width}x{new_height},")
    return picture.resize((new_width, new_height), _RESAMPLING[preprocess.interpolation])


def resized(height: int, width: int, preprocess: Preprocess) -> Size:
    """The (height, width) of an image of this size after the resizing step."""
    if preprocess.resize is None:
        return height, width
    rows, columns = preprocess.resize
    if preprocess.resize_mode == "exact":
        return rows, columns
    if preprocess.resize_mode == "shortest" and rows == columns:  # all three libraries truncate the longer side here
        if width <= height:
            return int(rows * height / width), rows
        return rows, int(rows * width / height)
    pick = min if preprocess.resize_mode == "shortest" else max
    ratio = pick(height / rows, width / columns)
    return round(height / ratio), round(width / ratio)


def _center_crop(picture: Image.Image, size: Size, preprocess: Preprocess) -> Image.Image:
    height, width = size
    short, narrow = max(height - picture.height, 0), max(width - picture.width, 0)
    if short or narrow:
        border = (narrow // 2, short // 2, (narrow + 1) // 2, (short + 1) // 2)
        picture = ImageOps.expand(picture, border, preprocess.fill)
    rounded = math.floor if preprocess.center == "down" else round
    top, left = rounded((picture.height - height) / 2), rounded((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))
