"""A rectangle of a tile, at full size or at 1/2, 1/4 or 1/8.

Where the optional extension was built, a JPEG tile is decoded only where the rectangle needs it;
everywhere else the whole tile is decoded and the rectangle copied. The pixels are the same: both
ways are libjpeg-turbo, which crops and skips without changing a pixel that is kept. Only damage
beyond the rectangle may go unseen by the extension, which stops after the last row it needs.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import simplejpeg

from pathfm_cli.wsi import codecs

try:
    from pathfm_cli.wsi import _roi
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True
"""Whether the extension is built and loads."""

SCALES = (1, 2, 4, 8)
MIN_SCALED_PX = 16
"""Smallest side of a tile that is scaled; TIFF knows no smaller tile."""

MAX_SCRATCH_BYTES = 4 << 20
"""Largest tile that a thread keeps room for."""
_kept = threading.local()
_SOI = b"\xff\xd8"
_EOI = b"\xff\xd9"
_COLOUR_MARKERS = (b"\xff\xe0", b"\xff\xee")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode_region(
    data: bytes,
    codec: str,
    prefix: bytes,
    width: int,
    height: int,
    x: int,
    y: int,
    w: int,
    h: int,
    out: Pixels,
    scale: int = 1,
) -> None:
    """Decode the rectangle (x, y, w, h) of one tile into `out`.

    A tile is scaled by libjpeg's reduced inverse transform (sizes are rounded up), so only JPEG
    tiles of at least 16 px a side can be scaled.

    Args:
        data: bytes of the tile.
        codec: see `codecs`.
        prefix: for JPEG what `codecs.jpeg_prefix` made, else empty.
        width: declared width of the tile, unscaled px.
        height: declared height of the tile, unscaled px.
        x: left edge in the scaled tile, px.
        y: top edge in the scaled tile, px.
        w: width in the scaled tile, px.
        h: height in the scaled tile, px.
        out: (h, w, 3) uint8, written in place; may be a window of a larger array.
        scale: 1, 2, 4 or 8: scaled pixels are this many times larger.

    Raises:
        ValueError: damaged data, an image of another size, or a rectangle that fits neither the
            tile nor `out`; `out` may then be partly written.
    """
    _check(codec, width, height, (x, y, w, h), out, scale)
    if codec.startswith("jpeg"):
        codecs.refuse_scans(data)
    if AVAILABLE and codec.startswith("jpeg") and _complete(data):
        body = memoryview(data)[_body(data) :]
        if _roi.decode(prefix, body, width, height, x, y, out, scale):
            return
    if scale == 1:
        pixels = codecs.decode(data, codec, prefix, width, height, _scratch(width, height))
    else:
        pixels = _scaled(prefix + data[_body(data) :], width, height, scale)
    out[:] = pixels[y : y + h, x : x + w]


def _check(
    codec: str, width: int, height: int, box: tuple[int, int, int, int], out: Pixels, scale: int
) -> None:
    scalable = codec.startswith("jpeg") and min(width, height) >= MIN_SCALED_PX
    if scale not in SCALES or (scale > 1 and not scalable):
        raise ValueError(f"a {codec} tile of {width}x{height} px cannot be scaled by 1/{scale}")
    if width * height > codecs.MAX_TILE_PIXELS:
        raise ValueError(f"a tile of {width}x{height} px is too large")
    x, y, w, h = box
    inside = 0 <= x < x + w <= -(-width // scale) and 0 <= y < y + h <= -(-height // scale)
    if not inside or out.shape != (h, w, 3) or out.dtype != np.uint8:
        raise ValueError(f"the rectangle {x},{y} {w}x{h} fits neither the tile nor the array")


def _complete(data: bytes) -> bool:
    """Whether the tile ends as it should; one cut short is judged by the full decode."""
    return data.startswith(_SOI) and data.rstrip(b"\0").endswith(_EOI)


def _body(data: bytes) -> int:
    """Where the tile goes on after the markers that `prefix` replaces."""
    if not data.startswith(_SOI):
        raise ValueError("no JPEG data")
    start = 2
    while data[start : start + 2] in _COLOUR_MARKERS:
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return start


def _scratch(width: int, height: int) -> Pixels:
    """This thread's own (height, width, 3), to be used at once; new pages cost 5 % of a decode."""
    kept: Pixels | None = getattr(_kept, "pixels", None)
    if kept is None or kept.shape != (height, width, 3):
        kept = np.empty((height, width, 3), np.uint8)
        if kept.nbytes <= MAX_SCRATCH_BYTES:
            _kept.pixels = kept
    return kept


def _scaled(stream: bytes, width: int, height: int, scale: int) -> Pixels:
    found = simplejpeg.decode_jpeg_header(stream)
    if (found[1], found[0]) != (width, height):
        raise ValueError(f"a tile of {found[1]}x{found[0]}, not {width}x{height}")
    pixels = _scratch(-(-width // scale), -(-height // scale))
    # simplejpeg takes the smallest scale that gives at least this size; below 16 px two give it.
    simplejpeg.decode_jpeg(
        stream, "RGB", min_height=len(pixels), min_width=pixels.shape[1], buffer=pixels
    )
    return pixels
