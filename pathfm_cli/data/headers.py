"""One slide file to its row of a `slides` table, and its tile tables in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from pathfm_cli import errors, kinds
from pathfm_cli.data import sources
from pathfm_cli.wsi import ahead, dicom, mpp, rendered, series, store, tiff, vendor

Row = dict[str, Any]

LEVEL = pl.Struct(
    {
        "width_px": pl.Int64,
        "height_px": pl.Int64,
        "downsample": pl.Float64,
        "tile_width_px": pl.Int32,
        "tile_height_px": pl.Int32,
        "codec": pl.String,
        "prefix": pl.Int32,
        "first_tile": pl.Int64,
        "first_offset": pl.Int64,
        "tiles": pl.Int64,
        "contiguous": pl.Boolean,
    }
)
"""One entry of the column `levels`: the fields of `pyramid.Level` and `tiles.Place`."""
SCHEMA: dict[str, Any] = {
    column.name: pl.List(LEVEL) if column.name == "levels" else getattr(pl, column.dtype)
    for column in kinds.KINDS["slides"].columns
}

LOST = "the processes that read it died, one after another"
"""The error of a slide that takes its reader with it."""
MIN_TILE_BYTES = 1 << 20
"""Tiles of fewer bytes are taken whatever their size; beyond it twice their raw RGB is the most."""

MAX_TILES = 1 << 23
"""Tiles of all levels, 16 bytes each in memory: 64 px tiles of 180,000 x 180,000 px are so many."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A slide to read: its source, the uri its row will hold, and its version.

    A file that is gone or may not be read has no version; `problem` says why where it was asked.
    """

    source: sources.Source
    uri: str
    size_bytes: int | None
    etag: str | None
    problem: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Plane:
    """A level with the byte offsets and byte counts of its tiles, (tiles,) uint64 each."""

    plane: vendor.Plane
    offsets: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]


def read(file: File, overrides: Mapping[str, float]) -> tuple[Row, tuple[Plane, ...]]:
    """Read the headers of a slide.

    Args:
        file: the slide.
        overrides: slide id to mpp; "" for slides without a trustworthy one.

    Returns:
        A row of `SCHEMA` whose `levels` is still None, and the levels; a slide that cannot be
        used has `error` and no levels.
    """
    slide = file.source.slide
    row: Row = dict.fromkeys(SCHEMA)
    row |= {"slide": slide, "uri": file.uri, "size_bytes": file.size_bytes, "etag": file.etag}
    try:
        return row, _describe(row, _open(file), overrides)
    except errors.SlideError as error:
        text = str(error)
        for prefix in (f"{slide}: ", f"{file.source.path}: "):
            text = text.removeprefix(prefix)
        return {**row, "error": text}, ()


def lost(file: File) -> tuple[Row, tuple[Plane, ...]]:
    """As `read`, for a slide over which several processes have died."""
    row: Row = dict.fromkeys(SCHEMA)
    row |= {"slide": file.source.slide, "uri": file.uri, "size_bytes": file.size_bytes}
    return {**row, "etag": file.etag, "error": LOST}, ()


def _open(file: File) -> store.Source:
    if file.problem is not None:
        raise errors.SlideError(file.problem)
    path = file.source.path
    if (
        store.is_remote(path)
        and not series.is_series(path)
        and file.size_bytes is not None
        and file.etag is not None
    ):
        return ahead.Ahead(store.open_version(path, file.size_bytes, file.etag))
    source = store.Source.open(path)
    if (source.size, source.etag) != (file.size_bytes, file.etag):
        raise errors.SlideError("it changed while it was indexed")
    return source


def _describe(row: Row, source: store.Source, overrides: Mapping[str, float]) -> tuple[Plane, ...]:
    """Fill in the row; what is known before an error stays in it."""
    slide = row["slide"]
    tables: list[dicom.Table] | None = None
    if isinstance(source, series.Series):
        description, tables = dicom.describe(source, slide)
    else:
        try:
            description = vendor.describe(source, slide)
        except vendor.Foreign as refusal:
            description, tables = rendered.describe(source.uri, refusal, slide)
            row["uri"] += rendered.MARK
    base = description.planes[0]
    row |= {
        "vendor": description.vendor,
        "width_px0": base.width_px,
        "height_px0": base.height_px,
        "objective": description.objective,
        "compression": base.codec,
    }
    resolution = description.resolution
    given = overrides.get(slide, overrides.get("") if resolution.mpp is None else None)
    if given is not None:
        resolution = mpp.Resolution(given, "override")
    if resolution.mpp is None:
        raise errors.MissingMpp(slide, resolution.problem)
    if tables is not None:
        pairs = zip(description.planes, tables, strict=True)
        planes = tuple(Plane(plane, *table) for plane, table in pairs)
    else:
        _refuse_many(description.planes, slide)
        source.prefetch(list(_tables(description.planes)))
        planes = tuple(_load(plane, source, slide) for plane in description.planes)
    for loaded in planes:
        _refuse_large(loaded, slide)
    row |= {"mpp": resolution.mpp, "mpp_source": resolution.source}
    return planes


def _refuse_many(planes: Sequence[vendor.Plane], slide: str) -> None:
    """Levels can share one table in the file, and a table can be a hole in it."""
    tiles = sum(plane.tiles for plane in planes)
    if tiles > MAX_TILES:
        raise errors.SlideError(f"{slide}: {tiles} tiles are not plausible")


def _refuse_large(loaded: Plane, slide: str) -> None:
    """A tile is read whole: its bytes are bounded by its pixels, whatever the file claims."""
    plane = loaded.plane
    most = max(MIN_TILE_BYTES, 2 * 3 * plane.tile_width_px * plane.tile_height_px)
    largest = int(loaded.counts.max(initial=0))
    if largest > most:
        raise errors.SlideError(
            f"{slide}: a tile of {plane.tile_width_px}x{plane.tile_height_px} px claims {largest} "
            "bytes, which is not plausible"
        )


def _tables(planes: Sequence[vendor.Plane]) -> Iterator[store.Range]:
    """Where the tile tables of the levels lie, those of the right length."""
    for plane in planes:
        for name in (tiff.TILE_OFFSETS, tiff.TILE_BYTE_COUNTS):
            tag = plane.directory.tags.get(name) if plane.directory else None
            if tag is not None and tag.count == plane.tiles:
                yield tag.offset, tag.size_bytes


def _load(plane: vendor.Plane, source: store.Source, slide: str) -> Plane:
    """Read the tile table of a level and check it against the file's size."""
    size = f"{plane.width_px}x{plane.height_px}"
    assert plane.directory is not None
    for tag in (tiff.TILE_OFFSETS, tiff.TILE_BYTE_COUNTS):
        found = plane.directory.tags[tag].count if tag in plane.directory.tags else 0
        if found != plane.tiles:
            raise errors.SlideError(
                f"{slide}: the level of {size} px lists {found} tiles, {plane.tiles} are needed"
            )
    offsets = plane.directory.array(tiff.TILE_OFFSETS).astype(np.uint64)
    counts = plane.directory.array(tiff.TILE_BYTE_COUNTS).astype(np.uint64)
    beyond = (counts > source.size) | (offsets > source.size - np.minimum(counts, source.size))
    if lost := int(np.count_nonzero(beyond & (counts > 0))):
        raise errors.SlideError(
            f"{slide}: {lost} of {plane.tiles} tiles of the level of {size} px lie beyond the end "
            "of the file: it is cut short"
        )
    # Without its directory, and so without an open file, it can travel to another process.
    return Plane(dataclasses.replace(plane, directory=None), offsets, counts)


def levels(planes: Sequence[Plane], places: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The value of the column `levels`.

    Args:
        planes: levels, finest first.
        places: the fields of each level's `tiles.Place`.
    """
    width, height = planes[0].plane.width_px, planes[0].plane.height_px
    return [
        {
            "width_px": plane.width_px,
            "height_px": plane.height_px,
            "downsample": (width / plane.width_px + height / plane.height_px) / 2,
            "tile_width_px": plane.tile_width_px,
            "tile_height_px": plane.tile_height_px,
            "codec": plane.codec,
            **place,
        }
        for plane, place in zip((loaded.plane for loaded in planes), places, strict=True)
    ]
