import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, features

from featreg.errors import ImageError, RequestError
from featreg.images import DECODER, MAX_PIXELS, decode, is_image_name, suffixes, to_pixels

PHOTOS = Path(__file__).parent.parent / "photos"
FILES = sorted([*PHOTOS.glob("*/*.jpg"), *PHOTOS.glob("*/*.png")])


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height=6, width=10):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 20, columns * 20, rows * 7 + columns], axis=2).astype(np.uint8)


def png(header, scanlines):
    """A PNG made by hand: its decoder is the only one involved."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")
    )


def tiff(width, height, bits, photometric, data):
    """A TIFF of one strip made by hand."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 8 + 2 + 12 * 9 + 4), (277, 1), (278, height), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_photos_decode_as_pillow_converts_them(path):
    found = decode(path.read_bytes())
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_the_sample_photos_are_there():
    assert len(FILES) == 12


def test_lossless_rgb_comes_back_exactly_and_may_be_written_to():
    found = decode(encoded(Image.fromarray(gradient()), "PNG"))
    assert np.array_equal(found, gradient())
    found[:] = 0


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}
"""What a viewer does for each value of the tag Orientation (Exif 2.32, 4.6.4), on arrays of (H, W, 3)."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    upright = encoded(Image.fromarray(gradient(16, 8)), kind, **options)
    turned = encoded(Image.fromarray(gradient(16, 8)), kind, exif=exif, **options)
    assert np.array_equal(decode(turned), TURNS[orientation](decode(upright)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("block", [b"MM\x00*\xff\xff\xff\xff" + b"\x80" * 20, b"no TIFF header at all", b"II*\x00"])
def test_unreadable_exif_leaves_the_image_as_it_is(block, kind):
    plain = encoded(Image.fromarray(gradient()), kind)
    broken = encoded(Image.fromarray(gradient()), kind, exif=b"Exif\x00\x00" + block)
    assert np.array_equal(decode(broken), decode(plain))


def test_an_odd_tag_does_not_hide_the_orientation():
    """A tag that Pillow reads but cannot write again, for which its own exif_transpose fails."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0103] = 6, 7
    data = encoded(Image.fromarray(gradient(16, 8)), "JPEG", exif=exif)
    place = data.index(struct.pack(">HHI", 0x0103, 3, 1))
    odd = data[: place + 2] + struct.pack(">H", 2) + data[place + 4 :]
    plain = encoded(Image.fromarray(gradient(16, 8)), "JPEG")
    with Image.open(io.BytesIO(odd)) as image, pytest.raises((TypeError, struct.error)):
        ImageOps.exif_transpose(image)
    assert np.array_equal(decode(odd), TURNS[6](decode(plain)))


def test_alpha_is_dropped_not_blended():
    rgba = np.dstack([gradient(), np.zeros((6, 10), np.uint8)])
    assert np.array_equal(decode(encoded(Image.fromarray(rgba), "PNG")), gradient())
    grey = Image.fromarray(np.dstack([gradient()[:, :, 0], np.full((6, 10), 9, np.uint8)]))
    assert np.array_equal(decode(encoded(grey, "PNG"))[:, :, 2], gradient()[:, :, 0])


@pytest.mark.parametrize("transparency", [0, b"\x00\x80\xff"])
def test_a_transparent_palette_gives_its_colours_without_a_warning(transparency):
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    data = encoded(palette, "PNG", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_cmyk_goes_through_pillow():
    cmyk = Image.fromarray(np.dstack([gradient(), gradient()[:, :, 0] // 2]), "CMYK")
    data = encoded(cmyk, "TIFF")
    assert np.array_equal(decode(data), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF", "XBM"])
def test_bilevel_is_black_and_white(kind):
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode(encoded(bits, kind))[:, :, 1].tolist() == [[0, 255], [255, 0]]


def test_sixteen_bit_grey_loses_its_low_byte():
    values = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], np.uint16)
    scanlines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    by_hand = png(struct.pack(">IIBBBBB", 4, 2, 16, 0, 0, 0, 0), scanlines)
    pgm = b"P5 4 2 65535\n" + values.astype(">u2").tobytes()
    tiff = encoded(Image.fromarray(values), "TIFF")
    for data in (by_hand, pgm, tiff):
        found = decode(data)
        assert found.shape == (2, 4, 3)
        assert np.array_equal(found[:, :, 0], values >> 8)
        assert np.array_equal(found[:, :, 0], found[:, :, 2])


@pytest.mark.parametrize("orientation", TURNS)
def test_sixteen_bits_of_any_byte_order_are_turned(orientation):
    values = (np.arange(15, dtype=np.uint16) * 4000).reshape(3, 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    big = Image.frombytes("I;16B", (5, 3), values.astype(">u2").tobytes())
    for image in (Image.fromarray(values), big):
        expected = TURNS[orientation](np.repeat((values >> 8)[:, :, None], 3, axis=2))
        assert np.array_equal(decode(encoded(image, "TIFF", exif=exif)), expected)


def test_twelve_bits_keep_their_high_eight():
    """Two samples in three bytes; Pillow leaves them between 0 and 4095."""
    assert decode(tiff(2, 1, 12, 1, bytes([0xAB, 0xC1, 0x23])))[0, :, 0].tolist() == [0xAB, 0x12]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_that_is_white_at_zero_is_no_negative(bits):
    values = np.array([0, 1, 128, 255], f"<u{bits // 8}") << (bits - 8)
    assert decode(tiff(4, 1, bits, 0, values.tobytes()))[0, :, 0].tolist() == [255, 254, 127, 0]
    assert decode(tiff(4, 1, bits, 1, values.tobytes()))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bits_with_alpha_lose_both():
    """Grey and colour: the low bytes and alpha."""
    grey = b"\0" + struct.pack(">4H", 0x1234, 0, 0xFF80, 0xFFFF)
    assert decode(png(struct.pack(">IIBBBBB", 2, 1, 16, 4, 0, 0, 0), grey)).tolist() == [[[0x12] * 3, [0xFF] * 3]]
    colour = b"\0" + struct.pack(">4H", 0x1234, 0xAB99, 0xFF00, 0)
    assert decode(png(struct.pack(">IIBBBBB", 1, 1, 16, 6, 0, 0, 0), colour)).tolist() == [[[0x12, 0xAB, 0xFF]]]


def test_grey_of_two_bits_spans_black_to_white():
    data = png(struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0), b"\0\x1b")
    assert decode(data)[0, :, 0].tolist() == [0, 85, 170, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "TGA"])
def test_grey_with_alpha_gives_its_grey(kind):
    grey = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    image = Image.fromarray(np.dstack([grey, np.full((2, 4), 7, np.uint8)]), "LA")
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(image, kind, **options)), np.repeat(grey[:, :, None], 3, axis=2))


def test_a_palette_with_alpha_gives_its_colours():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert decode(encoded(palette.convert("PA"), "TIFF")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_sixteen_bit_colour_loses_its_low_byte():
    values = np.arange(12, dtype=np.uint16).reshape(2, 2, 3) * 5000 + 77
    scanlines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    assert np.array_equal(decode(png(struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), scanlines)), values >> 8)


@pytest.mark.parametrize(("dtype", "said"), [(np.float32, "floating point"), (np.int32, "32-bit integers")])
def test_samples_without_an_8_bit_rule_are_refused(dtype, said):
    data = encoded(Image.fromarray(np.ones((2, 2), dtype)), "TIFF")
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert said in caught.value.got


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind):
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(data) == (255, 0, 0)).all()


def test_a_picture_before_the_animation_counts():
    """An APNG whose first image is for viewers that do not animate."""
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert (decode(data) == (255, 0, 0)).all()


def test_the_first_page_counts_whatever_the_others_are():
    pages = [Image.new("L", (9, 9)), Image.new("F", (2, 2))]
    data = encoded(Image.new("RGB", (5, 4), (1, 2, 3)), "TIFF", save_all=True, append_images=pages)
    assert decode(data).shape == (4, 5, 3)
    assert (decode(data) == (1, 2, 3)).all()


def test_an_empty_file_is_no_image():
    with pytest.raises(ImageError, match="empty file"):
        decode(b"")


@pytest.mark.parametrize("data", [b"hello, world", b"\x00" * 4096, b"<svg></svg>", b"%PDF-1.4\n", b"PK\x03\x04" * 9])
def test_bytes_that_are_no_image_are_refused_and_shown(data):
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.problem == "not an image that Pillow can read"
    assert repr(data[:16]) in caught.value.got


def test_postscript_is_not_handed_to_another_program():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with Image.open(io.BytesIO(postscript)) as image:
        assert image.format == "EPS"
    with pytest.raises(ImageError, match="not an image"):
        decode(postscript)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_half_a_file_is_an_error(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    assert decode(data).shape == (64, 64, 3)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2])


def test_a_photo_cut_anywhere_in_its_pixels_is_an_error():
    data = (PHOTOS / "objects" / "coffee.jpg").read_bytes()
    for length in (1, 100, 1000, 10_000, len(data) - 1000):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_a_png_with_a_wrong_checksum_is_damaged():
    data = bytearray(encoded(Image.fromarray(gradient()), "PNG"))
    data[20] ^= 1  # the width, in a chunk with a CRC
    with pytest.raises(ImageError, match=r"truncated or damaged|not an image"):
        decode(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_never_escape_as_anything_else():
    generator = np.random.default_rng(1)
    outcomes = set()
    for kind in ("PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG"):
        clean = encoded(Image.fromarray(gradient(16, 16)), kind)
        for _ in range(60):
            data = bytearray(clean)
            for place in generator.integers(0, len(data), 4):
                data[place] = generator.integers(0, 256)
            try:
                outcomes.add(decode(bytes(data)).dtype.name)
            except ImageError:
                outcomes.add("ImageError")
    assert outcomes == {"uint8", "ImageError"}


def test_a_bomb_is_refused_by_its_header():
    for width, height in ((MAX_PIXELS + 1, 1), (60_000, 60_000)):
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(ImageError, match="too large") as caught:
                decode(png(header, b"\0" * 100))
        assert str(MAX_PIXELS) in caught.value.expected
        assert str(2 * MAX_PIXELS) not in str(caught.value)


def test_inventing_missing_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RequestError, match="invent"):
        decode(encoded(Image.fromarray(gradient()), "PNG"))


def test_the_decoder_is_recorded():
    assert DECODER["library"] == "Pillow"
    assert DECODER["version"] == Image.__version__
    assert DECODER["rules"]["max_pixels"] == MAX_PIXELS
    assert DECODER["codecs"]["libjpeg_turbo"] == features.version("libjpeg_turbo")


def test_suffixes_are_those_of_images():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".mpo", ".bmp"} <= suffixes()
    assert not {".pdf", ".eps", ".ps", ".h5", ".hdf", ".mpg", ".txt", ".md"} & suffixes()


def test_a_suffix_makes_an_image_whatever_its_case():
    assert is_image_name("a/b.JPeG")
    assert not is_image_name("jpg")
    assert not is_image_name("a.jpg.txt")


def test_pixels_pass_as_they_are_and_bytes_are_decoded():
    assert to_pixels(gradient()).tolist() == gradient().tolist()
    assert np.array_equal(to_pixels(encoded(Image.fromarray(gradient()), "PNG")), gradient())


@pytest.mark.parametrize(
    "content",
    ["a text", gradient()[:, :, 0], gradient().astype(np.uint16), gradient()[:, :, :2], np.zeros((0, 3, 3), np.uint8)],
)
def test_what_is_no_picture_is_an_image_error(content):
    with pytest.raises(ImageError):
        to_pixels(content)
