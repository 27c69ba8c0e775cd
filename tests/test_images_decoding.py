"""Every kind of file ends in the right picture or in one sentence."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from salviz.errors import ImageError
from salviz.images import Picture, decode

RNG = np.random.default_rng(11)
PHOTO = RNG.integers(0, 256, (40, 64, 3), dtype=np.uint8)


def pack(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG written by hand, for what Pillow cannot write; `rows` holds big-endian samples, unfiltered."""
    step = len(rows) // height if rows else 0
    filtered = b"".join(b"\0" + rows[row * step : (row + 1) * step] for row in range(height if rows else 0))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(filtered))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + png_chunk(b"IEND", b"")


def opens(data: bytes, **options: Any) -> Picture:
    """Decode and check what holds for every picture."""
    picture = decode(data, **options)
    assert picture.image.mode == "RGB"
    assert picture.pixels().shape == (picture.size[1], picture.size[0], 3)
    assert all(note.endswith(".") for note in picture.notes)
    return picture


def refusal(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    sentence = str(caught.value)
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 200
    return sentence


# --- the right picture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_exact_and_share_one_digest(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = opens(pack(PHOTO, kind, **options))
    np.testing.assert_array_equal(picture.pixels(), PHOTO)
    assert picture.digest == opens(pack(PHOTO)).digest
    assert picture.notes == ()


def test_digest_depends_on_pixels_and_shape_only() -> None:
    other = PHOTO.copy()
    other[0, 0, 0] ^= 1
    reshaped = PHOTO.reshape(64, 40, 3)
    digests = {opens(pack(array)).digest for array in (PHOTO, other, reshaped)}
    assert len(digests) == 3
    exif = Image.Exif()
    exif[0x010E] = "a description"
    assert opens(pack(PHOTO, exif=exif), name="other.png").digest in digests


def test_jpeg_is_what_its_decoder_gives() -> None:
    data = pack(PHOTO, "JPEG", quality=95, subsampling=0)
    smooth = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(opens(data).pixels(), smooth)


# Where the stored pixel (row, column) is shown, by the EXIF standard's "row 0 is at, column 0 is at".
ORIENTATIONS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        options["tiffinfo"] = {0x0112: orientation}
    else:
        options["exif"] = exif
    np.testing.assert_array_equal(opens(pack(PHOTO, kind, **options)).pixels(), ORIENTATIONS[orientation](PHOTO))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_of_jpeg(orientation: int) -> None:
    # Blocks of 8 x 8 survive JPEG nearly unchanged.
    blocks = RNG.integers(0, 256, (5, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = opens(pack(blocks, "JPEG", quality=100, subsampling=0, exif=exif)).pixels()
    expected = ORIENTATIONS[orientation](blocks)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() <= 4


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_broken_exif_costs_nothing(exif: bytes) -> None:
    np.testing.assert_array_equal(opens(pack(PHOTO, exif=exif)).pixels(), PHOTO)


def test_unknown_orientation_means_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(opens(pack(PHOTO, exif=exif)).pixels(), PHOTO)


def on_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(kind: str) -> None:
    rgba = RNG.integers(0, 256, (40, 64, 4), dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = opens(pack(rgba, kind, **options))
    assert np.abs(picture.pixels() - on_white(rgba[..., :3], rgba[..., 3])).max() <= 0.5 + 1e-9
    assert picture.notes == ("Transparent parts were laid on white.",)


def test_opaque_alpha_is_not_worth_a_note() -> None:
    rgba = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    picture = opens(pack(rgba))
    np.testing.assert_array_equal(picture.pixels(), PHOTO)
    assert picture.notes == ()


def test_grey_with_alpha() -> None:
    la = RNG.integers(0, 256, (40, 64, 2), dtype=np.uint8)
    shown = opens(pack(Image.fromarray(la, "LA"))).pixels()
    grey = la[..., :1].repeat(3, axis=2)
    assert np.abs(shown - on_white(grey, la[..., 1])).max() <= 0.5 + 1e-9


def test_palette_with_and_without_transparency() -> None:
    index = RNG.integers(0, 4, (40, 64), dtype=np.uint8)
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(opens(pack(image)).pixels(), colours[index])
    np.testing.assert_array_equal(opens(pack(image, "GIF")).pixels(), colours[index])
    np.testing.assert_array_equal(opens(pack(image, "TIFF")).pixels(), colours[index])
    alpha = np.array([255, 0, 128, 64], dtype=np.uint8)
    shown = opens(pack(image, transparency=alpha.tobytes())).pixels()
    assert np.abs(shown - on_white(colours[index], alpha[index])).max() <= 0.5 + 1e-9
    one_index = opens(pack(image, "GIF", transparency=2)).pixels()
    np.testing.assert_array_equal(one_index, np.where((index == 2)[..., None], 255, colours[index]))


def test_colour_key_transparency() -> None:
    keyed = PHOTO.copy()
    keyed[:5] = (1, 2, 3)
    shown = opens(pack(keyed, transparency=(1, 2, 3))).pixels()
    assert (shown[:5] == 255).all()
    np.testing.assert_array_equal(shown[5:], keyed[5:])


def test_greyscale_and_one_bit() -> None:
    grey = PHOTO[..., 0]
    np.testing.assert_array_equal(opens(pack(grey)).pixels(), grey[..., None].repeat(3, axis=2))
    bits = grey > 100
    expected = (bits * np.uint8(255))[..., None].repeat(3, axis=2)
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(opens(pack(Image.fromarray(bits), kind)).pixels(), expected)


RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(kind: str) -> None:
    picture = opens(pack(RAMP, kind))
    expected = np.arange(256, dtype=np.uint8).repeat(256).reshape(256, 256)
    np.testing.assert_array_equal(picture.pixels(), expected[..., None].repeat(3, axis=2))
    assert np.abs(picture.pixels()[..., 0] - RAMP / 257).max() < 1
    assert picture.notes == ("The 16-bit values were scaled to 8 bits.",)


def raw_tiff(order: str, bits: int, interpretation: int, samples: bytes) -> bytes:
    """An uncompressed 256 x 256 grey TIFF written by hand; `order` is ``<`` or ``>``."""
    shorts = {256: 256, 257: 256, 258: bits, 259: 1, 262: interpretation, 273: 200, 277: 1, 278: 256}
    entries = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items())
    entries += struct.pack(order + "HHII", 279, 4, 1, len(samples))
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HIH", 42, 8, len(shorts) + 1) + entries + bytes(4)
    return head.ljust(200, b"\0") + samples


@pytest.mark.parametrize(("order", "interpretation"), [("<", 1), ("<", 0), (">", 1)])
def test_sixteen_bit_grey_in_either_byte_order_or_with_zero_white(order: str, interpretation: int) -> None:
    shown = opens(raw_tiff(order, 16, interpretation, RAMP.astype(order + "u2").tobytes())).pixels()[..., 0]
    np.testing.assert_array_equal(shown, RAMP >> 8 if interpretation else 255 - (RAMP >> 8))


def test_twelve_bit_grey() -> None:
    values = RAMP % 4096
    first, second = values[:, ::2], values[:, 1::2]  # two samples in three bytes
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    picture = opens(raw_tiff("<", 12, 1, packed.tobytes()))
    np.testing.assert_array_equal(picture.pixels()[..., 0], values >> 4)
    assert picture.notes == ("The 12-bit values were scaled to 8 bits.",)


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    key = png_chunk(b"tRNS", struct.pack(">H", 300))
    shown = opens(raw_png(256, 256, 16, 0, RAMP.astype(">u2").tobytes(), key)).pixels()
    np.testing.assert_array_equal(shown[..., 0], np.where(RAMP == 300, 255, RAMP >> 8))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_keeps_its_range(colour: int, channels: int) -> None:
    samples = RNG.integers(0, 65536, (32, 48, channels), dtype=np.uint16)
    picture = opens(raw_png(48, 32, 16, colour, samples.astype(">u2").tobytes()))
    high = (samples >> 8).astype(np.uint8)
    if channels == 3:
        expected = high.astype(float)
    elif channels == 2:
        expected = on_white(high[..., :1].repeat(3, axis=2), high[..., 1])
    else:
        expected = on_white(high[..., :3], high[..., 3])
    assert np.abs(picture.pixels() - expected).max() <= 0.5 + 1e-9
    assert "The 16-bit values were scaled to 8 bits." in picture.notes


def test_sixteen_bit_colour_key() -> None:
    samples = RNG.integers(0, 65536, (32, 48, 3), dtype=np.uint16)
    samples[:3] = (40000, 1000, 2)
    key = png_chunk(b"tRNS", struct.pack(">HHH", 40000, 1000, 2))
    shown = opens(raw_png(48, 32, 16, 2, samples.astype(">u2").tobytes(), key)).pixels()
    assert (shown[:3] == 255).all()
    np.testing.assert_array_equal(shown[3:], samples[3:] >> 8)


def test_cmyk() -> None:
    cmyk = RNG.integers(0, 256, (40, 64, 4), dtype=np.uint8)
    left = 255 - cmyk[..., 3:].astype(float)
    expected = left * (255 - cmyk[..., :3]) / 255
    shown = opens(pack(Image.fromarray(cmyk, "CMYK"), "TIFF")).pixels()
    assert np.abs(shown - expected).max() <= 1


def test_cmyk_jpeg_as_photoshop_writes_it_is_not_a_negative() -> None:
    paper, red = (0, 0, 0, 0), (0, 255, 255, 0)
    image = Image.new("CMYK", (64, 64), paper)
    image.paste(red, (0, 0, 32, 64))
    data = pack(image, "JPEG", quality=95)
    assert b"Adobe" in data  # with this marker the stored samples are inverted
    shown = opens(data).pixels().astype(int)
    assert np.abs(shown[:, 40:] - 255).max() <= 3
    assert np.abs(shown[:, :24] - (255, 0, 0)).max() <= 3


def test_ycbcr_tiff() -> None:
    data = pack(Image.fromarray(PHOTO).convert("YCbCr"), "TIFF")
    assert np.abs(opens(data).pixels().astype(int) - PHOTO).max() <= 3


def test_colour_profile_is_left_alone() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(opens(pack(PHOTO, icc_profile=profile)).pixels(), PHOTO)
    np.testing.assert_array_equal(opens(pack(PHOTO, icc_profile=b"not a profile")).pixels(), PHOTO)


@pytest.mark.parametrize(
    ("values", "expected", "note"),
    [
        ([[0.0, 0.25], [0.5, 1.0]], [[0, 64], [128, 255]], "0 to 1."),
        ([[0.0, 1.0], [99.6, 255.0]], [[0, 1], [100, 255]], "0 to 255."),
        ([[0.0, 257.0], [25700.0, 65535.0]], [[0, 1], [100, 255]], "0 to 65535."),
        ([[-1.0, 0.0], [1.0, 3.0]], [[0, 64], [128, 255]], "stretched"),
        ([[-3e38, 0.0], [0.0, 3e38]], [[0, 128], [128, 255]], "stretched"),
        ([[-5.0, -5.0], [-5.0, -5.0]], [[0, 0], [0, 0]], "stretched"),
    ],
)
def test_float_pictures(values: list[list[float]], expected: list[list[int]], note: str) -> None:
    picture = opens(pack(np.array(values, dtype=np.float32), "TIFF"))
    np.testing.assert_array_equal(picture.pixels()[..., 1], expected)
    assert note in picture.notes[0]


def test_integer_pictures_of_32_bits() -> None:
    values = np.array([[-1000, 0], [0, 1000]], dtype=np.int32)
    np.testing.assert_array_equal(opens(pack(values, "TIFF")).pixels()[..., 0], [[0, 128], [128, 255]])
    np.testing.assert_array_equal(opens(pack(abs(values) // 4, "TIFF")).pixels()[..., 0], [[250, 0], [0, 250]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_floats_that_are_no_numbers(bad: float) -> None:
    assert "not finite" in refusal(pack(np.array([[0, bad]], dtype=np.float32), "TIFF"))


def test_lab_is_refused() -> None:
    assert "save it as RGB" in refusal(pack(Image.new("LAB", (40, 40)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = pack(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = opens(data)
    assert (picture.pixels() == (255, 0, 0)).all()
    assert picture.notes == ("Only the first frame of the file is used.",)


def test_multi_picture_jpeg_of_telephones() -> None:
    main, extra = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (32, 32), "blue")
    data = pack(main, "MPO", save_all=True, append_images=[extra], quality=95)
    picture = opens(data)
    assert picture.size == (64, 64)
    assert np.abs(picture.pixels().astype(int) - (255, 0, 0)).max() <= 2


# --- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_large_pictures_are_reduced(kind: str) -> None:
    row = np.linspace(0, 255, 4800).round().astype(np.uint8)
    gradient = np.broadcast_to(row[None, :, None], (4200, 4800, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"compress_level": 1} if kind == "PNG" else {}
    picture = opens(pack(np.ascontiguousarray(gradient), kind, exif=exif, **options))
    assert picture.size == (2048, 2341)
    assert picture.notes == ("Reduced from 4200 x 4800 to 2048 x 2341 pixels.",)
    expected = (np.arange(2341) + 0.5) / 2341 * 255
    assert np.abs(picture.pixels()[:, 1000, 0] - expected).max() < 3


def test_very_long_pictures_are_reduced_by_their_longer_side() -> None:
    picture = opens(pack(Image.new("L", (16384, 1000))))
    assert picture.size == (8192, 500)


def test_reduction_keeps_hidden_colours_hidden() -> None:
    rgba = np.zeros((2100, 2100, 4), np.uint8)
    rgba[..., 0] = 255
    assert (opens(pack(rgba, compress_level=1)).pixels() == 255).all()


def test_small_pictures_carry_a_note() -> None:
    picture = opens(pack(Image.new("RGB", (1, 1), "red")))
    assert picture.size == (1, 1)
    assert "only 1 x 1 pixels" in picture.notes[0]


def test_strips_are_refused() -> None:
    assert "strip of 1000 x 1 pixels" in refusal(pack(Image.new("L", (1000, 1))))


def test_too_many_bytes_are_refused_before_anything_is_read() -> None:
    assert "the limit is 10 bytes" in refusal(b"x" * 11, max_bytes=10)
    assert "40.0 MB and the limit is 32.0 MB" in refusal(bytes(40 * 2**20))


def test_pixel_cap_is_checked_on_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack(PHOTO)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded before the check"))
    assert "64 x 40 pixels" in refusal(data, max_pixels=64 * 40 - 1)


def test_header_that_claims_a_huge_picture() -> None:
    assert "more pixels than the limit of 50 megapixels" in refusal(raw_png(50_000, 50_000, 8, 2, b""))
    assert "10000 x 9000 pixels" in refusal(raw_png(10_000, 9_000, 8, 2, b""))  # Pillow only warns


def test_small_file_that_unpacks_to_a_huge_picture() -> None:
    data = pack(Image.new("1", (12_000, 12_000)))
    assert len(data) < 100_000
    assert "12000 x 12000 pixels" in refusal(data)


def test_huge_canvas_of_webp_and_gif() -> None:
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff\x3f\0" * 2
    refusal(webp)
    gif = bytearray(pack(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    assert "limit" in refusal(bytes(gif))


def test_jpeg_with_thousands_of_scans() -> None:
    data = pack(PHOTO, "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    refused = refusal(data[:scan] + data[scan:-2] * 600 + data[-2:])
    assert "too often" in refused


def test_no_pixels() -> None:
    refusal(raw_png(0, 5, 8, 2, b""))


# --- not pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, world", "not a picture Salviz can read"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x --><svg/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "a PostScript document"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"\x80\x04\x95\x10\0\0\0", "a Python pickle"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF picture"),
        (b"\0\0\0\x1cftypisom\0\0\0\0", "a video"),
        (b"P6 2 2 255 " + bytes(12), "not a picture Salviz can read"),
        (bytes(1000), "not a picture Salviz can read"),
        (b"\x89PNG\r\n\x1a\n", "PNG file is damaged"),
        (b"\xff\xd8\xff\xe0", "JPEG file is damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP file is damaged"),
    ],
)
def test_what_is_no_photograph_is_named(data: bytes, words: str) -> None:
    assert words in refusal(data)


# --- damage ----------------------------------------------------------------------------------------------

SMOOTH = np.asarray(Image.fromarray(PHOTO[::8, ::8]).resize((64, 40), Image.Resampling.BICUBIC))
WHOLE = {
    "png": pack(SMOOTH),
    "png with alpha and exif": pack(np.dstack([SMOOTH, SMOOTH[..., 0]]), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "png of 16 bits": pack(SMOOTH[..., 0].astype(np.uint16) * 257),
    "palette": pack(Image.fromarray(SMOOTH).quantize(16), transparency=3),
    "jpeg": pack(SMOOTH, "JPEG"),
    "progressive jpeg": pack(SMOOTH, "JPEG", progressive=True),
    "cmyk jpeg": pack(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG"),
    "webp": pack(SMOOTH, "WEBP"),
    "lossless webp": pack(SMOOTH, "WEBP", lossless=True),
    "gif": pack(Image.fromarray(SMOOTH).quantize(16), "GIF", save_all=True, append_images=[Image.new("P", (64, 40))]),
    "bmp": pack(SMOOTH, "BMP"),
    "tiff": pack(SMOOTH, "TIFF"),
    "compressed tiff": pack(SMOOTH, "TIFF", compression="tiff_lzw"),
    "float tiff": pack(SMOOTH[..., 0].astype(np.float32), "TIFF", compression="tiff_deflate"),
}


def picture_or_sentence(data: bytes) -> None:
    """The contract for any bytes at all: a picture or an ImageError, and silence."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with contextlib.suppress(ImageError):
            assert decode(data, max_pixels=1_000_000).pixels().size > 0
    assert not heard


@pytest.mark.parametrize("kind", WHOLE)
def test_cut_in_half(kind: str) -> None:
    data = WHOLE[kind]
    assert "damaged" in refusal(data[: len(data) // 2])


@pytest.mark.parametrize("kind", WHOLE)
def test_cut_anywhere(kind: str) -> None:
    data = WHOLE[kind]
    for length in range(0, len(data), max(1, len(data) // 60)):
        picture_or_sentence(data[:length])


damage = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12)


@settings(max_examples=600, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), changes=damage, early=st.booleans(), kept=st.floats(0, 1))
def test_corrupted_anywhere(kind: str, changes: list[tuple[float, int]], early: bool, kept: float) -> None:
    data = bytearray(WHOLE[kind])
    # Headers hold most of what can go wrong, so half of the trials change those only.
    reach = min(len(data), 120) if early else len(data)
    for where, value in changes:
        data[int(where * reach)] = value
    picture_or_sentence(bytes(data))
    picture_or_sentence(bytes(data[: int(kept * len(data))]))


@settings(max_examples=200, deadline=None)
@given(head=st.sampled_from([data[:16] for data in WHOLE.values()] + [b""]), rest=st.binary(max_size=200))
def test_arbitrary_bytes(head: bytes, rest: bytes) -> None:
    picture_or_sentence(head + rest)


def test_filters_of_warnings_are_left_as_they_were() -> None:
    before = list(warnings.filters)
    opens(pack(PHOTO))
    refusal(b"nothing")
    assert warnings.filters == before


# --- what the picture carries ----------------------------------------------------------------------------


def test_name_source_and_label() -> None:
    data = pack(PHOTO)
    picture = opens(data, name="n01440764_tench.png")
    assert (picture.name, picture.source, picture.shareable) == ("n01440764_tench.png", "upload", False)
    assert picture.wordnet_id == "n01440764"
    assert opens(data, name="a\nb\x1b[31m\u202ec").name == "ab[31mc"
    assert picture == opens(data, name="n01440764_tench.png")
    assert hash(picture) == hash(opens(data, name="n01440764_tench.png"))
    assert "image=" not in repr(picture)


def test_pixels_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        opens(pack(PHOTO)).pixels()[0] = 0


def test_from_rgb_wants_rgb() -> None:
    with pytest.raises(ValueError, match="not L"):
        Picture.from_rgb(Image.new("L", (2, 2)))
