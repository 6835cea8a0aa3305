"""Slides as values, and their pixels at any position and resolution.

Coordinates are (x, y) of the left upper corner; pixel arrays are (height, width, 3) uint8 RGB.
Outside the slide and where a tile is missing, pixels are white.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathfm_cli import errors
from pathfm_cli.wsi import codecs, store, tiles

LEVEL_TOLERANCE = 0.02
"""A level this much coarser than asked still counts as equal."""
EXACT_PX = 1e-3
"""A region this close to whole pixels at scale 1 is copied, not resampled."""
MAX_READ_BYTES = 8 << 20
"""Adjacent tiles are read together up to this size."""
MAX_BAND_PIXELS = 1 << 25
"""Level pixels held at once while a thumbnail is made."""
MAX_THUMBNAIL_PIXELS = 1 << 27
"""Largest thumbnail; a damaged row can claim any size."""

# Against an area mean of real tissue, 2x: Hamming 55 dB, bicubic 49, bilinear 47, box 39. Near 1x
# Hamming turns into nearest neighbour, so bicubic takes over there.
_SHRINK = (Image.Resampling.HAMMING, 1.0)
_NEAR_ONE = (Image.Resampling.BICUBIC, 2.0)
_SHRINK_FROM = 1.4

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """One level: geometry, how its tiles are coded, and their rows in the tile table.

    Attributes:
        downsample: ratio of sizes, mean of x and y, as openslide states it; seldom an integer.
        place: rows in the tile table.
        scale: level-0 pixels per pixel in x and y, by which coordinates are converted: see
            `grid_scale`.
    """

    width_px: int
    height_px: int
    downsample: float
    tile_width_px: int
    tile_height_px: int
    codec: str
    place: tiles.Place
    scale: tuple[float, float]

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width_px // self.tile_width_px)


@dataclasses.dataclass(frozen=True, slots=True)
class Slide:
    """A slide that can be read; levels run from finest to coarsest."""

    slide: str
    uri: str
    size_bytes: int
    etag: str
    mpp: float
    width_px0: int
    height_px0: int
    levels: tuple[Level, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Slide:
        """Build it from a row of a `slides` (or `tissue`) table.

        Raises:
            errors.SlideError: the row carries an error or describes no pyramid.
        """
        if row["error"] is not None or not row["levels"] or not row["mpp"]:
            raise errors.SlideError(row["error"] or f"{row['slide']}: its row is damaged")
        size = (row["width_px0"], row["height_px0"])
        if not all(_plausible(fields, size) for fields in row["levels"]):
            raise errors.SlideError(f"{row['slide']}: its row is damaged")
        levels = tuple(_level(fields, size) for fields in row["levels"])
        return cls(
            slide=row["slide"],
            uri=row["uri"],
            size_bytes=row["size_bytes"],
            etag=row["etag"],
            mpp=row["mpp"],
            width_px0=row["width_px0"],
            height_px0=row["height_px0"],
            levels=levels,
        )

    def level_for(self, mpp: float) -> int:
        """Number of the coarsest level that is finer than or equal to `mpp` (2 % tolerance)."""
        fits = [
            number
            for number, level in enumerate(self.levels)
            if self.mpp * level.downsample <= mpp * (1 + LEVEL_TOLERANCE)
        ]
        return max(fits, default=0)


def grid_scale(size_px0: tuple[int, int], size_px: tuple[int, int]) -> tuple[float, float]:
    """Level-0 pixels per level pixel in x and y.

    Scanners shrink by a whole factor and cut (or pad) the last pixel, so a level 1106 px wide of a
    slide 17707 px wide is 16 times coarser, not 16.01 times: by the ratio the far edge is 11 px
    off. On every slide at hand, genuine Aperio ones included, the whole factor fits the pixels
    better. The ratio of sizes is used where no whole factor explains both of them.

    Args:
        size_px0: (width, height) of level 0.
        size_px: (width, height) of the level.
    """
    factor = round(size_px0[0] / size_px[0])
    if all(
        whole // factor <= part <= -(-whole // factor)
        for whole, part in zip(size_px0, size_px, strict=True)
    ):
        return float(factor), float(factor)
    return size_px0[0] / size_px[0], size_px0[1] / size_px[1]


def _plausible(fields: Mapping[str, Any], size_px0: tuple[int, int]) -> bool:
    """Whether a level has a size and as many tiles as that needs."""
    width, height = fields["width_px"], fields["height_px"]
    tile_width, tile_height = fields["tile_width_px"], fields["tile_height_px"]
    if not (0 < width <= size_px0[0] and 0 < height <= size_px0[1]):
        return False
    if tile_width <= 0 or tile_height <= 0:
        return False
    return bool(-(-width // tile_width) * -(-height // tile_height) == fields["tiles"])


def _level(fields: Mapping[str, Any], size_px0: tuple[int, int]) -> Level:
    values = dict(fields)
    names = [field.name for field in dataclasses.fields(tiles.Place)]
    place = tiles.Place(**{name: values.pop(name) for name in names})
    scale = grid_scale(size_px0, (values["width_px"], values["height_px"]))
    return Level(place=place, scale=scale, **values)


class Reader:
    """Reads pixels of slides; thread-safe, and picklable because it opens lazily."""

    def __init__(self, tile_table: str | Path) -> None:
        self._path = Path(tile_table)
        self._table: tiles.TileTable | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Reader], tuple[Path]]:
        return Reader, (self._path,)

    @property
    def table(self) -> tiles.TileTable:
        """The tile table, opened at first use.

        Raises:
            errors.InputError: it is missing or damaged.
        """
        with self._lock:
            if self._table is None:
                self._table = tiles.TileTable.open(self._path)
            return self._table

    def read_region(
        self, slide: Slide, x_px: int, y_px: int, level: int, width_px: int, height_px: int
    ) -> Pixels:
        """Read pixels of one level, as they are.

        Args:
            slide: the slide.
            x_px: left edge in pixels of the level; may lie outside.
            y_px: top edge in pixels of the level.
            level: number of the level.
            width_px: width in pixels of the level.
            height_px: height in pixels of the level.

        Returns:
            (height_px, width_px, 3) uint8.

        Raises:
            errors.SlideError: the file changed, cannot be read, or a tile is corrupt.
        """
        canvas = np.full((height_px, width_px, 3), 255, np.uint8)
        plane = slide.levels[level]
        left, right = max(x_px, 0), min(x_px + width_px, plane.width_px)
        top, bottom = max(y_px, 0), min(y_px + height_px, plane.height_px)
        if left >= right or top >= bottom:
            return canvas
        columns = np.arange(left // plane.tile_width_px, (right - 1) // plane.tile_width_px + 1)
        rows = np.arange(top // plane.tile_height_px, (bottom - 1) // plane.tile_height_px + 1)
        wanted = (rows[:, None] * plane.columns + columns).ravel()
        for tile, pixels in self._tiles(slide, level, wanted):
            row, column = divmod(tile, plane.columns)
            x, y = column * plane.tile_width_px, row * plane.tile_height_px
            x1, x2 = max(x, left), min(x + plane.tile_width_px, right)
            y1, y2 = max(y, top), min(y + plane.tile_height_px, bottom)
            canvas[y1 - y_px : y2 - y_px, x1 - x_px : x2 - x_px] = pixels[
                y1 - y : y2 - y, x1 - x : x2 - x
            ]
        return canvas

    def read_patch(
        self, slide: Slide, x_px0: float, y_px0: float, mpp: float, size_px: int
    ) -> Pixels:
        """Read a square patch.

        Args:
            slide: the slide.
            x_px0: left edge, level-0 pixels.
            y_px0: top edge, level-0 pixels.
            mpp: resolution of the result, um/px.
            size_px: side of the result, px.

        Returns:
            (size_px, size_px, 3) uint8.

        Raises:
            errors.SlideError: as `read_region`.
        """
        number = slide.level_for(mpp)
        scale_x, scale_y = slide.levels[number].scale
        side_px0 = size_px * mpp / slide.mpp
        box = (
            x_px0 / scale_x,
            y_px0 / scale_y,
            (x_px0 + side_px0) / scale_x,
            (y_px0 + side_px0) / scale_y,
        )
        return self._resample(slide, number, box, size_px, size_px)

    def read_thumbnail(self, slide: Slide, mpp: float) -> Pixels:
        """Read the whole slide at about `mpp`, from the nearest finer level, in bounded memory.

        Returns:
            (H, W, 3) uint8 with W = round(width_px0 * slide.mpp / mpp), at least 1, H alike; its
            true scale is width_px0 / W and height_px0 / H level-0 pixels per pixel.

        Raises:
            errors.SlideError: as `read_region`, or the result would exceed 134 megapixels.
        """
        number = slide.level_for(mpp)
        plane = slide.levels[number]
        width = max(1, round(slide.width_px0 * slide.mpp / mpp))
        height = max(1, round(slide.height_px0 * slide.mpp / mpp))
        if width * height > MAX_THUMBNAIL_PIXELS:
            raise errors.SlideError(
                f"{slide.slide}: the whole slide at {mpp:g} um/px has {width}x{height} px, "
                "which is too large a picture",
                "a coarser mpp",
            )
        right = slide.width_px0 / plane.scale[0]
        step = slide.height_px0 / plane.scale[1] / height
        band = max(1, int(MAX_BAND_PIXELS / plane.width_px / step))
        parts = []
        for top in range(0, height, band):
            bottom = min(top + band, height)
            box = (0.0, top * step, right, bottom * step)
            parts.append(self._resample(slide, number, box, width, bottom - top))
        return np.concatenate(parts)

    def _resample(
        self,
        slide: Slide,
        number: int,
        box: tuple[float, float, float, float],
        width_px: int,
        height_px: int,
    ) -> Pixels:
        """Bring the region `box` (left, top, right, bottom; level pixels) to a size."""
        x, y = round(box[0]), round(box[1])
        whole = (x, y, x + width_px, y + height_px)
        if all(abs(a - b) <= EXACT_PX for a, b in zip(box, whole, strict=True)):
            return self.read_region(slide, x, y, number, width_px, height_px)
        plane = slide.levels[number]
        scale = (box[2] - box[0]) / width_px
        kind, support = _SHRINK if scale >= _SHRINK_FROM else _NEAR_ONE
        left, right = _span(box[0], box[2], width_px, plane.width_px, support)
        top, bottom = _span(box[1], box[3], height_px, plane.height_px, support)
        region = self.read_region(slide, left, top, number, right - left, bottom - top)
        inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        return np.array(Image.fromarray(region).resize((width_px, height_px), kind, box=inner))

    def _tiles(
        self, slide: Slide, number: int, wanted: np.ndarray[Any, Any]
    ) -> Iterator[tuple[int, Pixels]]:
        """Decode tiles; a missing one is left out."""
        level = slide.levels[number]
        table = self.table
        if not table.holds(level.place):
            raise errors.SlideError(f"{slide.slide}: its tiles are not in {self._path}")
        source = _source(slide)
        offsets, counts = table.ranges(level.place, wanted)
        prefix = table.prefix(level.place.prefix)
        entries = [
            (tile, offset, count)
            for tile, offset, count in zip(
                wanted.tolist(), offsets.tolist(), counts.tolist(), strict=True
            )
            if count
        ]
        for tile, data in _read(source, entries):
            try:
                pixels = codecs.decode(
                    data, level.codec, prefix, level.tile_width_px, level.tile_height_px
                )
            except ValueError as error:
                raise errors.SlideError(
                    f"{slide.slide}: tile {tile} of level {number} is corrupt ({error})"
                ) from error
            yield tile, pixels


def _span(begin: float, end: float, out_px: int, size_px: int, support: float) -> tuple[int, int]:
    """Whole pixels that cover [begin, end] and the resampling filter's reach.

    The reach ends at the slide's edge, so white is mixed in only where the region itself lies
    outside.
    """
    reach = support * max(1.0, (end - begin) / out_px)
    left = min(math.floor(begin), max(0, math.floor(begin - reach)))
    right = max(math.ceil(end), min(size_px, math.ceil(end + reach)))
    return left, right


def _source(slide: Slide) -> store.Source:
    """The open file, which must be the one that was indexed."""
    for _ in range(2):
        source = store.open_source(slide.uri)
        if (source.size, source.etag) == (slide.size_bytes, slide.etag):
            return source
        # The file kept open may be an older one than the index saw: look once more.
        store.forget(slide.uri)
    raise errors.SlideError(
        f"{slide.slide}: {slide.uri} has changed since it was indexed", "run `pathfm index` again"
    )


def _read(source: store.Source, entries: list[tuple[int, int, int]]) -> Iterator[tuple[int, bytes]]:
    """Bytes of each (tile, offset, count); adjacent ranges in one read."""
    begin = 0
    while begin < len(entries):
        _, offset, length = entries[begin]
        end = begin + 1
        while (
            end < len(entries)
            and entries[end][1] == offset + length
            and length + entries[end][2] <= MAX_READ_BYTES
        ):
            length += entries[end][2]
            end += 1
        data = source.read(offset, length)
        for tile, place, count in entries[begin:end]:
            yield tile, data[place - offset : place - offset + count]
        begin = end
