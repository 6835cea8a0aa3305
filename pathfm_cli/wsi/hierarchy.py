"""The keys of the Zarr hierarchy over an index, and their values.

`zarr.json` of the root, of `SLIDE` (a group) and of `SLIDE/LEVEL` (an array), made when asked for;
`SLIDE/LEVEL/c/0/ROW/COLUMN`: the bytes of one tile, read from the slide. Missing tiles are absent.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pathfm_cli import artifacts, errors
from pathfm_cli.wsi import ngff, regions, rows, slide, store, tiles

METADATA = "zarr.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """Where the bytes of a tile lie."""

    slide: slide.Slide
    offset: int
    count: int

    def read(self) -> bytes:
        """Read them.

        Raises:
            errors.SlideError: the file is gone, has changed, or the tile is impossibly large.
        """
        if self.count > regions.MAX_TILE_BYTES:
            raise errors.SlideError(f"{self.slide.slide}: a tile of {self.count} bytes is corrupt")
        origin = self.slide
        source = store.open_version(origin.uri, origin.size_bytes, origin.etag)
        return source.read(self.offset, self.count)


class Hierarchy:
    """Names and values; thread-safe, picklable, opened at first use."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name a `slides`, `tissue` or `patches` artifact; its rows with an error are left out."""
        self.path = Path(os.path.abspath(path))

    def __reduce__(self) -> tuple[type[Hierarchy], tuple[Path]]:
        return Hierarchy, (self.path,)

    @functools.cached_property
    def _table(self) -> artifacts.Table:
        return artifacts.read_table(self.path, *rows.KINDS)

    @functools.cached_property
    def _tiles(self) -> tiles.TileTable:
        return tiles.TileTable.open(self._table.file("tiles"))

    @functools.cached_property
    def _slides(self) -> rows.Slides:
        return rows.readable(self._table)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        """Positions of slides by the names of their groups."""
        return {node_name(name): number for number, name in enumerate(self._slides.names)}

    def _slide(self, node: str) -> slide.Slide | None:
        number = self._numbers.get(node)
        return None if number is None else self._slides[number]

    def document(self, key: str) -> bytes | None:
        """The JSON that a key of metadata stands for; None for any other key.

        Raises:
            errors.InputError: the artifact is missing or damaged.
        """
        *nodes, last = key.split("/")
        if last != METADATA or len(nodes) > 2:
            return None
        if not nodes:
            return _json(ngff.root(self._table.header.id))
        if len(nodes) == 1:
            found = self._slide(nodes[0])
            return _json(ngff.image(found)) if found else None
        if (place := self._level(nodes)) is None:
            return None
        found, number = place
        prefix = self._tiles.prefix(found.levels[number].place.prefix)
        return _json(ngff.array(found, number, prefix))

    def tile(self, key: str) -> Tile | None:
        """The tile that a key stands for; None for any other key and for a missing tile.

        Raises:
            errors.InputError: as `document`.
        """
        parts = key.split("/")
        place = self._level(parts) if len(parts) == 6 and parts[2:4] == ["c", "0"] else None
        if place is None:
            return None
        found, number = place
        level = found.levels[number]
        row = _number(parts[4], _rows(level))
        column = _number(parts[5], level.columns)
        if row is None or column is None:
            return None
        ((offset, count),) = self._tiles.run(level.place, row * level.columns + column, 1)
        return Tile(found, offset, count) if count else None

    def read(self, key: str) -> bytes | None:
        """The value of any key; None if there is no such key.

        Raises:
            errors.SlideError: as `Tile.read`.
        """
        data = self.document(key)
        if data is None and (tile := self.tile(key)) is not None:
            data = tile.read()
        return data

    def children(self, node: str) -> list[str]:
        """Names of the keys and nodes directly below a node; "" is the root."""
        parts = node.split("/") if node else []
        if not parts:
            return [METADATA, *self._numbers]
        if len(parts) == 1:
            found = self._slide(parts[0])
            return [METADATA, *map(str, range(len(found.levels)))] if found else []
        if (place := self._level(parts)) is None:
            return []
        if len(parts) == 2:
            return [METADATA, "c"]
        found, number = place
        return self._chunks(found.levels[number], parts[2:])

    def walk(self, node: str = "") -> Iterator[str]:
        """Every key below a node; a cohort has very many."""
        for name in self.children(node):
            below = f"{node}/{name}" if node else name
            if name == METADATA or below.count("/") == 5:
                yield below
            else:
                yield from self.walk(below)

    def _level(self, parts: list[str]) -> tuple[slide.Slide, int] | None:
        """The slide and level that a path begins with, if the tile table holds it."""
        found = self._slide(parts[0])
        number = _number(parts[1], len(found.levels)) if found else None
        if found is None or number is None:
            return None
        return (found, number) if self._tiles.holds(found.levels[number].place) else None

    def _chunks(self, level: slide.Level, parts: list[str]) -> list[str]:
        """Names below `c`, `c/0` and `c/0/ROW`: rows and columns with tiles."""
        if parts == ["c"]:
            return ["0"]
        if parts[:2] != ["c", "0"] or len(parts) > 3:
            return []
        present = self._tiles.rows(level.place)[1].reshape(-1, level.columns) > 0
        if len(parts) == 2:
            return [str(row) for row in np.flatnonzero(present.any(axis=1))]
        row = _number(parts[2], len(present))
        return [] if row is None else [str(column) for column in np.flatnonzero(present[row])]


def node_name(name: str) -> str:
    """The name of a slide's group: its own, with what Zarr forbids in names written as %XX."""
    name = name.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")
    # Names of dots only, names that begin with "__" and the name of the metadata are taken.
    if name.startswith("__") or not name.strip(".") or name == METADATA:
        return f"%{ord(name[0]):02X}{name[1:]}"
    return name


def _number(text: str, count: int) -> int | None:
    """The number below `count` that `text` is in its usual spelling."""
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or text != str(int(text)):
        return None
    return int(text) if int(text) < count else None


def _rows(level: slide.Level) -> int:
    return -(-level.height_px // level.tile_height_px)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()
