"""Windows of one level of a slide: which tiles, where their bytes lie, decoded into place.

Each tile that several windows share is fetched and decoded once. A tile that one window shows is
decoded straight into that window's array.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathfm_cli import errors
from pathfm_cli.wsi import roi, slide, store, tiles

MAX_TILE_BYTES = 64 << 20
"""Largest compressed tile; one of `codecs.MAX_TILE_PIXELS` has 48 MiB of pixels."""
MAX_FETCH_BYTES = 64 << 20
"""Compressed bytes held at once."""
WHITE = 255

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A rectangle to read, in pixels of the level scaled by 1/scale, and where it goes.

    Attributes:
        out: (height, width, 3) uint8, or None for a new array.
    """

    left: int
    top: int
    width: int
    height: int
    out: Pixels | None = None


class _Part(NamedTuple):
    """What one window shows of one tile: a rectangle of the tile, and its place in the array."""

    tile: int
    x: int
    y: int
    out: Pixels


class _Tile(NamedTuple):
    """A tile that is not missing, and where its bytes lie."""

    number: int
    offset: int
    size: int


def read(
    table: tiles.TileTable,
    origin: slide.Slide,
    number: int,
    windows: Sequence[Window],
    scale: int = 1,
) -> list[Pixels]:
    """Read windows of one level.

    Args:
        table: where the tiles lie.
        origin: the slide.
        number: of the level.
        windows: what to read.
        scale: 1, 2, 4 or 8; see `roi`.

    Returns:
        One (height, width, 3) uint8 array per window; white outside the slide and where a tile is
        missing.

    Raises:
        errors.SlideError: the file changed, cannot be read, or a tile is corrupt; the arrays may
            then be partly written.
    """
    level = origin.levels[number]
    if not table.holds(level.place):
        raise errors.SlideError(f"{origin.slide}: its tiles are not in {table.path}")
    found: dict[int, _Tile] = {}
    parts: list[_Part] = []
    arrays = [_lay_out(table, level, window, scale, found, parts) for window in windows]
    if parts:
        _fill(table, origin, number, scale, found.values(), parts)
    return arrays


def announce(
    table: tiles.TileTable,
    origin: slide.Slide,
    number: int,
    windows: Sequence[Window],
    scale: int = 1,
) -> None:
    """Let what `read` will need of a remote slide come already; the arguments are those of `read`.

    Raises:
        errors.SlideError: a tile lies outside the file.
    """
    level = origin.levels[number]
    if not store.is_remote(origin.uri) or not table.holds(level.place):
        return
    wanted: dict[int, int] = {}
    for window in windows:
        columns, rows = _grid(level, window, scale)
        for row in rows:
            run = table.run(level.place, row * level.columns + columns[0], len(columns))
            wanted |= {offset: count for offset, count in run if 0 < count <= MAX_TILE_BYTES}
    source = store.open_version(origin.uri, origin.size_bytes, origin.etag)
    source.prefetch(sorted(wanted.items()))


def touched(level: slide.Level, window: Window, scale: int) -> Iterator[int]:
    """Numbers of the tiles under a window."""
    columns, rows = _grid(level, window, scale)
    return (row * level.columns + column for row in rows for column in columns)


def _grid(level: slide.Level, window: Window, scale: int) -> tuple[range, range]:
    """Columns and rows of the tiles under a window; empty where it lies outside."""
    left, right = _inside(window.left, window.width, level.width_px // scale)
    top, bottom = _inside(window.top, window.height, level.height_px // scale)
    if left >= right or top >= bottom:
        return range(0), range(0)
    width, height = level.tile_width_px // scale, level.tile_height_px // scale
    return (
        range(left // width, (right - 1) // width + 1),
        range(top // height, (bottom - 1) // height + 1),
    )


def _inside(begin: int, length: int, size: int) -> tuple[int, int]:
    """The part of [begin, begin + length) that lies in [0, size)."""
    return max(begin, 0), min(begin + length, size)


def _lay_out(
    table: tiles.TileTable,
    level: slide.Level,
    window: Window,
    scale: int,
    found: dict[int, _Tile],
    parts: list[_Part],
) -> Pixels:
    """The array of a window, white where nothing will be written; adds its tiles and parts."""
    array = window.out
    if array is None:
        array = np.empty((window.height, window.width, 3), np.uint8)
    left, right = _inside(window.left, window.width, level.width_px // scale)
    top, bottom = _inside(window.top, window.height, level.height_px // scale)
    if (right - left, bottom - top) != (window.width, window.height):
        array[:] = WHITE
        if left >= right or top >= bottom:
            return array
    tile_width, tile_height = level.tile_width_px // scale, level.tile_height_px // scale
    first, across = left // tile_width, level.columns
    # Where tiles begin and end in the slide, clipped to the window.
    cuts = [*range((first + 1) * tile_width, right, tile_width), right]
    for row in range(top // tile_height, (bottom - 1) // tile_height + 1):
        y = row * tile_height
        y1, y2 = max(y, top), min(y + tile_height, bottom)
        band = array[y1 - window.top : y2 - window.top]
        begin, x1 = row * across + first, left
        run = table.run(level.place, begin, len(cuts))
        for tile, x2, (offset, count) in zip(
            range(begin, begin + len(cuts)), cuts, run, strict=True
        ):
            out = band[:, x1 - window.left : x2 - window.left]
            if count:
                found[tile] = _Tile(tile, offset, count)
                parts.append(_Part(tile, x1 % tile_width, y1 - y, out))
            else:
                out[:] = WHITE
            x1 = x2
    return array


def _fill(
    table: tiles.TileTable,
    origin: slide.Slide,
    number: int,
    scale: int,
    found: Iterable[_Tile],
    parts: Sequence[_Part],
) -> None:
    """Fetch and decode tiles, and write the parts."""
    level = origin.levels[number]
    prefix = table.prefix(level.place.prefix)
    size = (level.tile_width_px, level.tile_height_px)
    source = store.open_version(origin.uri, origin.size_bytes, origin.etag)
    ordered = sorted(found, key=lambda tile: tile.offset)
    for tile in ordered:
        if tile.size > MAX_TILE_BYTES:
            raise errors.SlideError(
                f"{origin.slide}: tile {tile.number} of level {number} is corrupt "
                f"({tile.size} bytes)"
            )
    uses: dict[int, list[_Part]] = {}
    for part in parts:
        uses.setdefault(part.tile, []).append(part)
    for name, data in _fetch(source, ordered):
        try:
            _decode(data, (level.codec, prefix, *size), scale, uses[name])
        except ValueError as error:
            raise errors.SlideError(
                f"{origin.slide}: tile {name} of level {number} is corrupt ({error})"
            ) from error


def _decode(
    data: bytes, kind: tuple[str, bytes, int, int], scale: int, parts: Sequence[_Part]
) -> None:
    """Decode what the parts show of one tile, once."""
    if len(parts) == 1:
        (part,) = parts
        height, width, _ = part.out.shape
        roi.decode_region(data, *kind, part.x, part.y, width, height, part.out, scale)
        return
    left, top = min(part.x for part in parts), min(part.y for part in parts)
    width = max(part.x + part.out.shape[1] for part in parts) - left
    height = max(part.y + part.out.shape[0] for part in parts) - top
    pixels = np.empty((height, width, 3), np.uint8)
    roi.decode_region(data, *kind, left, top, width, height, pixels, scale)
    for part in parts:
        rows, columns, _ = part.out.shape
        y, x = part.y - top, part.x - left
        part.out[:] = pixels[y : y + rows, x : x + columns]


def _fetch(source: store.Source, found: Sequence[_Tile]) -> Iterator[tuple[int, bytes]]:
    """Bytes of each tile, in order of offset."""
    left = collections.deque(found)
    while left:
        batch = [left.popleft()]
        total = batch[0].size
        while left and total + left[0].size <= MAX_FETCH_BYTES:
            total += left[0].size
            batch.append(left.popleft())
        blocks = source.read_many([(tile.offset, tile.size) for tile in batch])
        for tile, block in zip(batch, blocks, strict=True):
            yield tile.number, block
