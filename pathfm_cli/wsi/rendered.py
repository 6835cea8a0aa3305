"""Slides of other vendors through openslide: local files, rendered by it tile by tile.

Hamamatsu NDPI, MIRAX, Leica SCN, Ventana BIF, Philips TIFF and what else openslide opens. To all
other modules such a slide is a file of raw RGB tiles: `read` renders the tile that lies at an
offset. Its uri is the path and `#openslide`, so that an index says which slides these are. White
lies under what is transparent. Fluorescence is not recognised in these formats: its pixels come as
openslide colours them. Needs the extra `openslide`.
"""

from __future__ import annotations

import bisect
import collections
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathfm_cli import errors
from pathfm_cli.wsi import mpp, store, vendor

MARK = "#openslide"
TILE_PX = 256
TILE_BYTES = TILE_PX * TILE_PX * 3
OPEN_SLIDES = 16
"""Slides that openslide holds open per process: each takes megabytes."""
CACHE_BYTES = 64 << 20
"""Decoded tiles that openslide keeps, of all its slides together."""

Array = np.ndarray[Any, Any]
_open: collections.OrderedDict[tuple[str, str], Any] = collections.OrderedDict()
_lock = threading.Lock()
_cache: list[Any] = []


def is_rendered(uri: str) -> bool:
    """Whether `uri` means a slide that openslide renders."""
    return uri.endswith(MARK)


def plain(uri: str) -> str:
    """The uri as the user named it."""
    return uri.removesuffix(MARK)


class Rendered(store.Source):
    """A slide as raw tiles of `TILE_PX`, level after level, row after row."""

    def __init__(self, uri: str) -> None:
        """Look at the file; see `Source.open`."""
        self.uri = uri
        self._path = plain(uri)
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise errors.SlideError(f"{self._path}: does not exist") from error
        self.size, self.etag = status.st_size, str(status.st_mtime_ns)
        opened = self._slide()
        self.levels = list(zip(opened.level_dimensions, opened.level_downsamples, strict=True))
        self._begins = [0]
        for (width, height), _ in self.levels:
            tiles = -(-width // TILE_PX) * -(-height // TILE_PX)
            self._begins.append(self._begins[-1] + tiles * TILE_BYTES)

    @property
    def properties(self) -> dict[str, str]:
        """What openslide tells about the slide."""
        return dict(self._slide().properties)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of the label, macro and other pictures beside the slide; they are never read."""
        return tuple(self._slide().associated_images)

    def check(self, offset: int, length: int) -> None:
        """Refuse a range outside the tiles; see `Source.check`."""
        if offset < 0 or length < 0 or offset + length > self._begins[-1]:
            raise errors.SlideError(f"{self._path}: has changed since it was indexed")

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; see `Source.read`."""
        self.check(offset, length)
        first, skipped = divmod(offset, TILE_BYTES)
        last = (offset + length - 1) // TILE_BYTES
        data = b"".join(self._tile(number * TILE_BYTES) for number in range(first, last + 1))
        return data[skipped : skipped + length]

    def read_many(self, ranges: Sequence[store.Range]) -> list[bytes]:
        """Return the bytes of every range, in order."""
        return [self.read(offset, length) for offset, length in ranges]

    def table(self, number: int) -> tuple[Array, Array]:
        """(tiles,) uint64 offsets and byte counts of a level."""
        offsets = np.arange(
            self._begins[number], self._begins[number + 1], TILE_BYTES, dtype=np.uint64
        )
        return offsets, np.full(len(offsets), TILE_BYTES, dtype=np.uint64)

    def _tile(self, offset: int) -> bytes:
        level = bisect.bisect_right(self._begins, offset) - 1
        (width, _), downsample = self.levels[level]
        number = (offset - self._begins[level]) // TILE_BYTES
        row, column = divmod(number, -(-width // TILE_PX))
        place = tuple(round(tile * TILE_PX * downsample) for tile in (column, row))
        import openslide

        try:
            image = self._slide().read_region(place, level, (TILE_PX, TILE_PX))
        except openslide.OpenSlideError as error:
            with _lock:
                # openslide refuses everything after the first error on a handle.
                _open.pop((self._path, self.etag), None)
            raise errors.SlideError(f"{self._path}: cannot be read ({error})") from error
        pixels = np.asarray(image, np.uint16)
        alpha = pixels[..., 3:]
        return (
            ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        ).tobytes()

    def _slide(self) -> Any:
        key = (self._path, self.etag)
        with _lock:
            if key in _open:
                _open.move_to_end(key)
                return _open[key]
        opened = _opened(self._path)
        with _lock:
            if not _cache:
                import openslide

                _cache.append(openslide.OpenSlideCache(CACHE_BYTES))
            opened.set_cache(_cache[0])
            _open[key] = opened
            while len(_open) > OPEN_SLIDES:
                # Dropped, not closed: a thread may be reading it.
                _open.popitem(last=False)
        return opened


def _opened(path: str) -> Any:
    try:
        import openslide
    except ImportError as error:
        raise errors.SlideError(
            f"{path}: is read through openslide only: pip install 'pathfm[openslide]'"
        ) from error
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise errors.SlideError(f"{path}: openslide cannot open it ({error})") from error


def describe(
    path: str, refusal: vendor.Foreign, name: str
) -> tuple[vendor.Description, list[tuple[Array, Array]]]:
    """Look at a slide that pathfm does not read itself.

    Args:
        path: of the slide.
        refusal: what pathfm said about it.
        name: slide id, for messages.

    Returns:
        The slide, and for each level where its tiles are.

    Raises:
        errors.SlideError: it is remote, openslide is absent or cannot open it either.
    """
    what = refusal.what
    if store.is_remote(path):
        if not refusal.slide:
            raise refusal
        raise errors.SlideError(
            f"{name}: {what}, which only openslide reads, and that only from a local disk"
        ) from refusal
    try:
        import openslide
    except ImportError as error:
        if not refusal.slide:
            raise refusal from error
        raise errors.SlideError(
            f"{name}: {what}, which needs an extra: pip install 'pathfm[openslide]'"
        ) from error
    if openslide.OpenSlide.detect_format(path) is None:
        raise refusal
    source = Rendered(f"{path}{MARK}")
    found = source.properties
    objective = _number(found.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
    declared = tuple(
        _number(found.get(key)) or 0.0
        for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    )
    resolution = mpp.resolve(
        (declared[0], declared[1]) if any(declared) else None, "openslide", (0.0, 0.0), objective
    )
    planes = tuple(
        vendor.Plane(width, height, TILE_PX, TILE_PX, "raw", b"", None)
        for (width, height), _ in source.levels
    )
    brand = f"openslide:{found.get(openslide.PROPERTY_NAME_VENDOR, 'unknown')}"
    description = vendor.Description(brand, resolution, objective, planes)
    return description, [source.table(number) for number in range(len(planes))]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value > 0 else None
