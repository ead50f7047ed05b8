"""Bytes to RGB, by one stated rule per kind of image.

Pillow decodes everything; :data:`DECODER` records its version and the rules, and goes into the manifest of every store.
"""

from __future__ import annotations

import functools
import io
import os
import re
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from featreg.errors import ImageError, RequestError
from featreg.extras import data_extra

__all__ = [
    "DECODER",
    "MAX_PIXELS",
    "Pixels",
    "decode",
    "decoded_size",
    "formats",
    "is_image_name",
    "suffixes",
    "to_pixels",
]

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

with data_extra():
    import PIL
    from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features
    from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

MAX_PIXELS = 89_478_485
"""The most pixels an image may have, decoded or resized: Pillow's own limit, a quarter of a GiB in RGB."""

CODECS = ("libjpeg_turbo", "jpg_2000", "webp", "libtiff")
"""The libraries behind Pillow whose version decides what lossy pixels become, by Pillow's names."""

DECODER = MappingProxyType(
    {
        "library": "Pillow",
        "version": PIL.__version__,
        "codecs": MappingProxyType({name: features.version(name) for name in CODECS}),
        "rules": MappingProxyType(
            {
                "orientation": "EXIF orientation is applied, unreadable EXIF counts as none",
                "alpha": "dropped",
                "palette": "converted by Pillow",
                "cmyk": "converted by Pillow, ICC profiles are ignored",
                "grey16": "high byte; of 12-bit TIFF the high 8 bits; white-is-zero TIFF inverted",
                "colour16": "high byte, by Pillow",
                "integer32": "refused",
                "float": "refused",
                "animation": "first frame",
                "pages": "first page",
                "truncated": "refused",
                "max_pixels": MAX_PIXELS,
            }
        ),
    }
)
"""How images are decoded, as plain data: a change of any value may change pixels."""

UNREADABLE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"})
"""Formats that Pillow knows but cannot decode by itself: it only writes or identifies them, or runs another program."""

SIXTEEN_BIT = frozenset({"PNG", "PPM"})
"""The formats whose mode "I" (32-bit integers in Pillow) holds 16-bit samples; elsewhere its range is unknown."""


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF tag Orientation (Exif 2.32, 4.6.4)."""


def decode(data: bytes) -> Pixels:
    """An encoded image as RGB of (height, width, 3).

    EXIF orientation is applied, as in a viewer; alpha is dropped, not blended; palettes and CMYK go through Pillow's
    ``convert("RGB")``; 16-bit samples keep the high byte; of an animation the first frame counts, of several pages the
    first. Missing pixels are never invented. What Pillow's JPEG decoder accepts in spite of flipped bits is accepted:
    JPEG has no checksum.

    Raises ImageError for bytes that are empty, truncated, damaged, no image, too large (:data:`MAX_PIXELS`) or of a
    sample type without an 8-bit rule (32-bit integers, floating point).
    """
    if not data:
        raise ImageError("an empty file is no image", "the bytes of an image", "0 bytes")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RequestError(
            "Pillow is set to invent the missing pixels of truncated images",
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False",
            "True",
            remedy="set it back to False: truncated images then become rows with an error",
        )
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            check_size(image.width, image.height, "the image")
            return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image that Pillow can read", "a JPEG, PNG, ...", _looks_like(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        counted = re.search(r"\d+ pixels", str(error))  # Pillow names the limit too, and doubles it before it refuses
        found = counted[0] if counted else str(error)
        raise ImageError("the image is too large", f"at most {MAX_PIXELS} pixels", found) from error
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, and more
        raise ImageError("the image is truncated or damaged", got=f"{type(error).__name__}: {error}") from error


def to_pixels(content: bytes | Pixels | str) -> Pixels:
    """What a source gives for a sample as RGB of (height, width, 3): decoded, unless it is pixels already.

    Raises ImageError as :func:`decode`, and for a text.
    """
    if isinstance(content, bytes):
        return decode(content)
    if not isinstance(content, np.ndarray):
        raise ImageError("the sample is no image", "encoded bytes, or pixels", type(content).__name__)
    if content.ndim != 3 or content.shape[2] != 3 or content.dtype != np.uint8:
        raise ImageError("pixels of another form", "(height, width, 3) of uint8", f"{content.shape} of {content.dtype}")
    check_size(content.shape[1], content.shape[0], "the image")
    return content


def decoded_size(content: bytes | Pixels | str) -> int:
    """The bytes that a sample takes as RGB, by its header alone; 0 for what :func:`to_pixels` refuses."""
    if not isinstance(content, bytes):
        return content.nbytes if isinstance(content, np.ndarray) else 0
    try:
        with Image.open(io.BytesIO(content), formats=formats()) as image:
            return 3 * image.width * image.height
    except Exception:  # noqa: BLE001  (Pillow's plugins raise anything; decoding says what is wrong)
        return 0


def check_size(width: int, height: int, what: str) -> None:
    """Raise ImageError for an image of no pixel or of more than :data:`MAX_PIXELS`."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"{what} is empty or too large", f"1 to {MAX_PIXELS} pixels", f"{width}x{height} pixels")


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, in the order in which they are tried."""
    Image.init()
    return tuple(name for name in Image.ID if name not in UNREADABLE)


@functools.cache
def suffixes() -> frozenset[str]:
    """The file suffixes of images, lower case, with the dot."""
    known = {*formats(), "MPO"}  # Pillow opens MPO through its JPEG plugin
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_image_name(name: str) -> bool:
    """Whether the suffix of a file name is one of :func:`suffixes`, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in suffixes()


def _to_rgb(image: ImageFile.ImageFile) -> Pixels:
    image.load()
    turn = _TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format in SIXTEEN_BIT):
        return np.repeat(_high_bits(np.asarray(upright), image)[:, :, None], 3, axis=2)
    if upright.mode in ("I", "F"):
        raise ImageError(
            "the image has no 8-bit form",
            "samples of 8 bits, or of 16 in grey",
            f"{image.format} of {'32-bit integers' if upright.mode == 'I' else 'floating point'}",
            remedy="convert it with a scale of your choice",
        )
    upright.info.pop("transparency", None)  # alpha is dropped, so Pillow need not warn about it
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))  # a copy less of large ones


def _high_bits(grey: np.ndarray[Any, Any], image: ImageFile.ImageFile) -> Pixels:
    """The upper 8 of 16 bits, or of the 12 that a TIFF may have; one that counts down from white is inverted.

    Pillow inverts 8-bit TIFFs itself, and leaves 16-bit ones as negatives and 12-bit ones unscaled.
    """
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = 12 if tags.get(BITSPERSAMPLE) == (12,) else 16
    high = (grey >> (bits - 8)).astype(np.uint8)
    return np.bitwise_not(high) if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else high


def _orientation(image: ImageFile.ImageFile) -> Any:
    """The EXIF tag, read by itself: ``ImageOps.exif_transpose`` rewrites the whole block and fails on any odd tag."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (a broken block fails in any way, and the pixels are none the worse for it)
        return None


def _looks_like(data: bytes) -> str:
    return f"{len(data)} bytes that begin with {data[:16]!r}"
