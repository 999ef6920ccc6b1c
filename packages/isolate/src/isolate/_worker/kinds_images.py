"""Pillow: images in memory, with mode, palette and notes."""

from __future__ import annotations

from typing import Any

from .errors import UnsupportedTypeError, WireError
from .kinds_standard import wanted
from .libraries import library

_BITS = {
    "1": 1,
    "L": 8,
    "P": 8,
    "LA": 16,
    "La": 16,
    "PA": 16,
    "I;16": 16,
    "I;16B": 16,
    "I;16L": 16,
    "RGB": 24,
    "YCbCr": 24,
    "LAB": 24,
    "HSV": 24,
    "RGBA": 32,
    "RGBa": 32,
    "RGBX": 32,
    "CMYK": 32,
    "I": 32,
    "F": 32,
}
"""The modes that travel, with the bits of a pixel."""


def describe(value: Any, kind: type) -> tuple[str, Any] | None:
    """Return tag and parts of an image; None for anything else, an image that is still a file among them."""
    if (kind.__module__, kind.__qualname__) != ("PIL.Image", "Image"):
        return None
    if value.mode not in _BITS:
        raise UnsupportedTypeError(f"an image of mode {value.mode} does not travel; send value.convert('RGBA')")
    palette = value.palette
    colours = None if palette is None else [palette.mode, bytes(palette.palette), palette.rawmode]
    return "PIL.Image", [value.mode, list(value.size), value.tobytes(), colours, dict(value.info)]


def build(tag: str, parts: Any) -> Any:
    """Return the image for its parts."""
    if tag != "PIL.Image":
        raise WireError(f"there is no type {tag!r:.40} in the protocol")
    library("PIL.Image", "an image")
    from PIL import Image, ImagePalette

    mode, (width, height), data, colours, info = parts
    wanted(mode in _BITS and type(width) is int and type(height) is int and width >= 0 <= height, "an image")
    # Checked before the library makes room for the pixels.
    wanted(type(data) is bytes and len(data) == (width * _BITS[mode] + 7) // 8 * height, "an image")
    made = Image.frombytes(mode, (width, height), data) if width and height else Image.new(mode, (width, height))
    if colours is not None:
        form, content, raw = colours
        wanted(form in ("RGB", "RGBA") and type(content) is bytes and len(content) <= 1024, "an image's palette")
        wanted(raw is None or raw in ("RGB", "RGBA", "RGBX", "BGR", "BGRX"), "an image's palette")
        palette = ImagePalette.ImagePalette(form, bytearray(content))
        palette.rawmode = raw
        made.palette = palette
        if made.mode in ("P", "PA"):
            made.im.putpalette(form, raw or form, content)
    wanted(type(info) is dict, "an image")
    made.info = info
    return made
