"""What a file is by its first bytes, to say in a sentence why it is not read."""

from __future__ import annotations

_READABLE_SIGNATURES = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_UNREADABLE_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"8BPS", "a Photoshop document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\0\0\x01\0", "an icon file"),
)
_BRANDS = {b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"qt  ": "a video"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "a HEIC picture"
)


def why_unreadable(data: bytes) -> str:
    """Explain why no decoder wanted a file.

    Args:
        data: The file, or at least its first kilobyte.

    Returns:
        One sentence with what it seems to be and what to do.
    """
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((kind for magic, kind in _UNREADABLE_SIGNATURES if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        kind = _BRANDS.get(data[8:12], "a video")
    elif head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head):
        kind = "an SVG drawing"
    elif head.startswith((b"<!doctype html", b"<html")):
        kind = "a web page"
    if kind is not None:
        return f"This is {kind}, not a photograph Salviz reads: save it as PNG or JPEG."
    if _readable_kind(data) is not None:
        return damaged(data)
    return "This is not a picture Salviz can read: choose a PNG, JPEG, WebP, GIF, BMP or TIFF file."


def damaged(data: bytes) -> str:
    """Say that a file of a readable format could not be decoded.

    Args:
        data: The file, or at least its first twelve bytes.

    Returns:
        One sentence that names the format and what to do.
    """
    kind = _readable_kind(data) or "picture"
    if kind == "TIFF":  # a family of formats, of which no reader knows all
        return "The TIFF file is damaged or of a variant Salviz cannot read: save it as PNG."
    return f"The {kind} file is damaged or cut short: save or download it again, or choose another one."


def _readable_kind(data: bytes) -> str | None:
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for magic, kind in _READABLE_SIGNATURES if data.startswith(magic)), None)
