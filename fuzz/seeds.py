"""Sound images of every format, made by Pillow, in the forms that are decoded by code of their own."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["FORMATS", "seeds"]

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF")


@functools.cache
def seeds(kind: str) -> Mapping[str, bytes]:
    """The images of one format by what is special about them; the same at every call."""
    makers = {"JPEG": _jpegs, "PNG": _pngs, "WEBP": _webps, "TIFF": _tiffs, "GIF": _gifs}
    return makers[kind]()


def _photo(size: int = 48) -> Image.Image:
    rows, columns = np.mgrid[:size, :size]
    noise = np.random.default_rng(0).integers(0, 40, (size, size, 3))
    smooth = np.stack([rows * 4, columns * 4, rows * 2 + columns * 2], axis=2) % 200
    return Image.fromarray((smooth + noise).astype(np.uint8))


def _grey16() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 2**16, (24, 32)).astype(np.uint16))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [_photo().rotate(90), _photo().rotate(180)], "duration": 10, "loop": 0}


def _jpegs() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return {
        "baseline": _encoded(_photo(), "JPEG"),
        "progressive": _encoded(_photo(), "JPEG", progressive=True),
        "grey": _encoded(_photo().convert("L"), "JPEG"),
        "cmyk": _encoded(_photo().convert("CMYK"), "JPEG"),
        "exif": _encoded(_photo(), "JPEG", exif=exif),
        "restarts": _encoded(_photo(), "JPEG", restart_marker_blocks=2),
        "several": _encoded(_photo(), "MPO", **_frames()),
    }


def _pngs() -> dict[str, bytes]:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "words " * 50, zip=True)
    info.add_itxt("Title", "more words", zip=True)
    return {
        "rgb": _encoded(_photo(), "PNG"),
        "palette": _encoded(_photo().quantize(16), "PNG"),
        "transparent": _encoded(_photo().quantize(16), "PNG", transparency=3),
        "alpha": _encoded(_photo().convert("RGBA"), "PNG"),
        "bilevel": _encoded(_photo().convert("1"), "PNG"),
        "grey16": _encoded(_grey16(), "PNG"),
        "animated": _encoded(_photo(), "PNG", **_frames()),
        "texts": _encoded(_photo(), "PNG", pnginfo=info, icc_profile=b"\0" * 200),
    }


def _webps() -> dict[str, bytes]:
    return {
        "lossy": _encoded(_photo(), "WEBP"),
        "lossless": _encoded(_photo(), "WEBP", lossless=True),
        "alpha": _encoded(_photo().convert("RGBA"), "WEBP"),
        "animated": _encoded(_photo(), "WEBP", **_frames()),
    }


def _tiffs() -> dict[str, bytes]:
    packed = {
        name: _encoded(_photo(), "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd")
    }
    return {
        "raw": _encoded(_photo(), "TIFF"),
        "grey16": _encoded(_grey16(), "TIFF"),
        "palette": _encoded(_photo().quantize(16), "TIFF"),
        "fax": _encoded(_photo().convert("1"), "TIFF", compression="group4"),
        "cmyk": _encoded(_photo().convert("CMYK"), "TIFF"),
        "big": _encoded(_photo(), "TIFF", big_tiff=True),
        "pages": _encoded(_photo(), "TIFF", **_frames()),
        **packed,
    }


def _gifs() -> dict[str, bytes]:
    return {
        "still": _encoded(_photo().quantize(64), "GIF"),
        "plain": _encoded(_photo().quantize(8), "GIF", interlace=0),
        "transparent": _encoded(_photo().quantize(16), "GIF", transparency=1),
        "animated": _encoded(_photo(), "GIF", **_frames()),
        "comment": _encoded(_photo().quantize(4), "GIF", comment=b"x" * 300),
    }
