"""Small files that ask for much: pixels, text, frames, or time."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from fuzz.mutations import Case

__all__ = ["bombs"]

HUGE = 60_000
ALMOST = 9_459
"""The side of a square that is just within the pixels that may be decoded."""


def bombs(*, heavy: bool = True) -> list[Case]:
    """Every bomb, numbered from 0; those that take a second and more to make or to decode only with ``heavy``."""
    made = {**_light(), **(_heavy() if heavy else {})}
    return [Case(number, kind, name, "bomb", data) for number, ((kind, name), data) in enumerate(made.items())]


def _light() -> dict[tuple[str, str], bytes]:
    return {
        ("PNG", "60,000 pixels square"): png(HUGE, HUGE, b""),
        ("PNG", "one pixel high, 2^31 - 1 wide"): png(2**31 - 1, 1, b""),
        ("PNG", "no pixel wide"): png(0, 10, b""),
        ("PNG", "2^31 - 1 frames"): _many_frames(),
        ("JPEG", "65,535 pixels square"): _jpeg(),
        ("GIF", "65,535 pixels square"): _gif(65_535),
        ("GIF", "a frame beyond its screen"): _gif(4, 65_535),
        ("WEBP", "16,383 pixels square"): _webp(),
        ("TIFF", "2^31 - 1 pixels square"): tiff(2**31 - 1, 2**31 - 1),
        ("TIFF", "pages in a circle"): _circle(),
        ("TIFF", "a tag of 4 GiB"): tiff(4, 4, extra=(270, 2, 2**32 - 1, 8)),
    }


def _heavy() -> dict[tuple[str, str], bytes]:
    return {
        ("PNG", "just within the limit, all zeros"): png(ALMOST, ALMOST, bytes(ALMOST * (1 + 3 * ALMOST))),
        ("PNG", "just within the limit, no pixels"): png(ALMOST, ALMOST, b""),
        ("PNG", "1 GiB of compressed text"): _text_bomb(b"zTXt"),
        ("PNG", "1 GiB of colour profile"): _text_bomb(b"iCCP"),
        ("TIFF", "just within the limit, no pixels"): tiff(ALMOST, ALMOST),
        ("TIFF", "60,000 pixels square, compressed zeros"): _tiff_zeros(),
    }


def png(width: int, height: int, scanlines: bytes, *more: bytes) -> bytes:
    """A PNG of 8-bit RGB, with chunks of its own before the pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(scanlines, 1)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels


def tiff(width: int, height: int, data: bytes = b"\0", compression: int = 1, *, extra: tuple[int, ...] = ()) -> bytes:
    """A TIFF of one strip of 8-bit grey; ``extra`` is one more tag, its type, count and value."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 0), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data))]
    tags = sorted([*tags, extra] if extra else tags)  # type: ignore[list-item]
    offset = 8 + 2 + 12 * len(tags) + 4
    packed = [
        struct.pack("<HHII", tag, kind, count, offset if tag == 273 else value) for tag, kind, count, value in tags
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(packed) + struct.pack("<I", 0) + data


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _zeros(size: int) -> bytes:
    """Compressed zeros, without having held them."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    return b"".join([*(packer.compress(block) for _ in range(size // 2**20)), packer.flush()])


def _text_bomb(name: bytes) -> bytes:
    return png(2, 2, bytes(14), _chunk(name, b"name\0\0" + _zeros(2**30)))


def _many_frames() -> bytes:
    control = _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    frame = _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2, 2, 0, 0, 1, 1, 0, 0))
    return png(2, 2, bytes(14), control, frame)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff" * 4
    return bytes(data)


def _gif(screen: int, frame: int | None = None) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *[frame or screen] * 2, 0) + b"\x02\x02\x4c\x01\x00;"


def _webp() -> bytes:
    """A lossless header: 14 bits each of width and height, minus one."""
    bits = struct.pack("<BI", 0x2F, 16_382 | 16_382 << 14)
    body = b"WEBPVP8L" + struct.pack("<I", len(bits) + 1) + bits + b"\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _circle() -> bytes:
    data = bytearray(tiff(4, 4, bytes(16)))
    data[-20:-16] = struct.pack("<I", 8)
    return bytes(data)


def _tiff_zeros() -> bytes:
    return tiff(HUGE, HUGE, _zeros(2**28), 8)
