"""One compressed tile to RGB pixels, with the size it must have.

Codec names: `jpeg-ycbcr`, `jpeg-rgb`, `jp2k-ycbcr` (TIFF 33003), `jp2k-rgb` (33005), `webp`, and
`raw`, `lzw`, `deflate`, each also as `NAME-delta` when TIFF's horizontal predictor is declared.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import imagecodecs
import numpy as np
import simplejpeg

MAX_TILE_PIXELS = 1 << 24
"""Largest tile that is decoded: 4096 x 4096."""
MAX_SCANS = 100
"""Scans of a JPEG, each of which goes over the whole image; progressive encoders write ten."""

_SOI = b"\xff\xd8"
_EOI = b"\xff\xd9"
_SOS = b"\xff\xda"
# A JFIF marker makes libjpeg read YCbCr, an Adobe marker with transform 0 makes it read RGB; the
# TIFF photometric, not the tile, says which it is.
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_COLOUR_MARKERS = (b"\xff\xe0", b"\xff\xee")


def jpeg_prefix(codec: str, tables: bytes) -> bytes:
    """What goes before a tile's own JPEG data: SOI, a marker that names the colours, the tables.

    Args:
        codec: `jpeg-ycbcr` or `jpeg-rgb`.
        tables: value of the TIFF tag JPEGTables, may be empty.

    Raises:
        ValueError: the tables are no JPEG stream.
    """
    marker = _JFIF if codec == "jpeg-ycbcr" else _ADOBE_RGB
    if not tables:
        return _SOI + marker
    body = tables.rstrip(b"\0")
    if not body.startswith(_SOI) or not body.endswith(_EOI) or body.count(_SOS) > MAX_SCANS:
        raise ValueError("damaged JPEGTables")
    return _SOI + marker + body[2:-2]


def says_rgb(data: bytes) -> bool:
    """Whether a JPEG stream has an Adobe marker without colour transform before its image."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if data[at + 1] == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            return body[11] == 0
        at += 2 + length
    return False


def refuse_scans(data: bytes) -> None:
    """Refuse a JPEG of more than `MAX_SCANS` scans, before it is decoded.

    Raises:
        ValueError: it is one.
    """
    # Within the data of a scan this pair of bytes does not occur. To look for it takes a tenth of
    # the time of the decoder, and most tiles say in their head that they have one scan.
    if not _one_scan(data) and (scans := data.count(_SOS)) > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans")


def _one_scan(data: bytes) -> bool:
    """Whether a JPEG is sequential and has all components in its first scan; others are ignored."""
    at, parts = 2, 0
    while data[at : at + 1] == b"\xff" and at + 10 <= len(data):
        marker = data[at + 1]
        if marker == 0xDA:
            return data[at + 4] == parts
        if marker in (0xC0, 0xC1):
            parts = data[at + 9]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def decode(
    data: bytes,
    codec: str,
    prefix: bytes,
    width: int,
    height: int,
    scratch: np.ndarray[Any, np.dtype[np.uint8]] | None = None,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one tile.

    Args:
        data: bytes of the tile.
        codec: see the module.
        prefix: for JPEG what `jpeg_prefix` made, else empty.
        width: declared width, px.
        height: declared height, px.
        scratch: (height, width, 3) uint8 that may be used for the result, or None.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: damaged data, or an image of another size.
    """
    if width * height > MAX_TILE_PIXELS:
        raise ValueError(f"a tile of {width}x{height} px is too large")
    try:
        if codec.startswith("jpeg"):
            return _jpeg(data, prefix, width, height, scratch)
        if codec.startswith("jp2k"):
            return _jp2k(data, codec, width, height)
        if codec == "webp":
            return _webp(data, width, height)
        return _plain(data, codec, width, height)
    except (RuntimeError, struct.error, IndexError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _jpeg(
    data: bytes,
    prefix: bytes,
    width: int,
    height: int,
    scratch: np.ndarray[Any, np.dtype[np.uint8]] | None,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if data[:2] != _SOI:
        raise ValueError("no JPEG data")
    refuse_scans(data)
    start = 2
    while data[start : start + 2] in _COLOUR_MARKERS:
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    # The buffer bounds the allocation: a larger image than declared does not fit in it.
    pixels = np.empty((height, width, 3), np.uint8) if scratch is None else scratch
    # Some tiles lack their end marker; one that is really cut short is still found to be.
    stream = b"".join((prefix, memoryview(data)[start:], _EOI))
    image = simplejpeg.decode_jpeg(stream, "RGB", buffer=pixels)
    _check(image.shape, width, height)
    return pixels


def _jp2k(data: bytes, codec: str, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise ValueError("no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    _check((bottom - top, right - left, components), width, height)
    # From there on: boxes before it could hold one codestream for this check, another to decode.
    pixels = imagecodecs.jpeg2k_decode(data[start:], numthreads=1)
    _check(pixels.shape, width, height)
    if pixels.dtype != np.uint8:
        raise ValueError(f"samples are {pixels.dtype}, not uint8")
    return _rgb_of_ycbcr(pixels) if codec == "jp2k-ycbcr" else pixels


def _rgb_of_ycbcr(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Full-range BT.601, as JFIF defines it."""
    y, cb, cr = np.moveaxis(pixels.astype(np.float32), -1, 0)
    cb -= 128
    cr -= 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return cast(
        "np.ndarray[Any, np.dtype[np.uint8]]", np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    )


def _webp(data: bytes, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = np.empty((height, width, 3), np.uint8)
    image = imagecodecs.webp_decode(data, hasalpha=False, out=pixels)
    _check(image.shape, width, height)
    return pixels


def _plain(data: bytes, codec: str, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    name, _, delta = codec.partition("-")
    size = width * height * 3
    if name == "raw":
        samples: bytes | bytearray = data
    elif name == "lzw":
        # One byte more than fits shows a stream that is too long.
        samples = imagecodecs.lzw_decode(data, out=size + 1)
    elif name == "deflate":
        samples = imagecodecs.zlib_decode(data, out=size)
    else:
        raise ValueError(f"unknown codec {codec}")
    if len(samples) != size:
        raise ValueError(f"{len(samples)} bytes, not {size}")
    pixels = np.frombuffer(samples, np.uint8).reshape(height, width, 3)
    return np.cumsum(pixels, axis=1, dtype=np.uint8) if delta else pixels


def _check(shape: tuple[int, ...], width: int, height: int) -> None:
    if tuple(shape) != (height, width, 3):
        found = "x".join(map(str, shape[1::-1] + shape[2:]))
        raise ValueError(f"a tile of {found}, not {width}x{height}x3")
