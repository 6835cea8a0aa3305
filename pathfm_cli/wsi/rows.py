"""From the rows of a `slides`, `tissue` or `patches` artifact to slides that can be read.

A slide is made of its row when it is asked for: 29,000 of them as objects would take a second and
100 MB in every process. All rows are checked at once, in columns, when the artifact is opened.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.wsi import slide, store

KINDS = ("slides", "tissue", "patches")
ROOT_VARIABLE = "PATHFM_ROOT"
"""Environment variable: where relative uris start, when not where the index was told."""
HELD = 1024
"""Slides held as objects, those used last."""


def about_slides(table: artifacts.Table) -> pl.DataFrame:
    """The rows about slides, bad ones included; a `patches` artifact carries them along.

    Raises:
        errors.InputError: a `patches` artifact without its slides.
    """
    if table.header.kind != "patches":
        return table.frame
    if "slides" not in table.attached:
        raise errors.InputError(f"{table.path} does not carry its slides.")
    return table.attached["slides"]


class Slides(Sequence[slide.Slide]):
    """Slides of checked rows, in their order."""

    def __init__(self, frame: pl.DataFrame, root: Path) -> None:
        """Take the rows.

        Args:
            frame: rows that `readable` has checked.
            root: where relative uris start.
        """
        self._frame = frame
        self._root = root
        self._get = functools.lru_cache(maxsize=HELD)(self._make)

    def __len__(self) -> int:
        return self._frame.height

    @overload
    def __getitem__(self, place: int) -> slide.Slide: ...
    @overload
    def __getitem__(self, place: slice) -> list[slide.Slide]: ...
    def __getitem__(self, place: int | slice) -> slide.Slide | list[slide.Slide]:
        if isinstance(place, slice):
            return [self._get(number) for number in range(len(self))[place]]
        return self._get(range(len(self))[place])

    @property
    def names(self) -> list[str]:
        """Their ids."""
        return self._frame["slide"].to_list()

    @property
    def remote(self) -> bool:
        """Whether any slide lies behind a URL."""
        return bool(self._frame["uri"].str.contains("://", literal=True).any())

    def _make(self, number: int) -> slide.Slide:
        return _absolute(slide.Slide.from_row(self._frame.row(number, named=True)), self._root)


def readable(table: artifacts.Table) -> Slides:
    """Slides of the rows without error, in row order, local uris absolute.

    Raises:
        errors.InputError: a row is damaged, or as `about_slides`.
    """
    frame = about_slides(table)
    names = [field.name for field in dataclasses.fields(slide.Slide)]
    if missing := [name for name in (*names, "error") if name not in frame.columns]:
        raise errors.InputError(f"{table.path} has no column {missing[0]} about its slides.")
    good = frame.filter(pl.col("error").is_null()).select(*names, "error")
    if (damaged := _damaged(good)) is not None:
        raise errors.InputError(f"{table.path} has a damaged row of slides ({damaged}).")
    return Slides(good, _root(table))


def _damaged(frame: pl.DataFrame) -> str | None:
    """The id of the first slide whose row describes no pyramid, if there is one."""
    row = pl.all_horizontal(
        pl.all().exclude("levels", "error").is_not_null(),
        pl.col("mpp") > 0,
        pl.col("levels").list.len() > 0,
    )
    whole = frame.filter(row)
    if whole.height < frame.height:
        return str(frame.filter(row.not_().fill_null(True))["slide"][0])
    parts = whole.select("slide", "width_px0", "height_px0", "levels").explode("levels")
    parts = parts.unnest("levels")
    columns, rows = (
        (pl.col(f"{side}_px") + pl.col(f"tile_{side}_px") - 1) // pl.col(f"tile_{side}_px")
        for side in ("width", "height")
    )
    sound = pl.all_horizontal(
        pl.all().is_not_null(),
        pl.col("width_px").is_between(1, pl.col("width_px0")),
        pl.col("height_px").is_between(1, pl.col("height_px0")),
        pl.col("tile_width_px") > 0,
        pl.col("tile_height_px") > 0,
        columns * rows == pl.col("tiles"),
    )
    bad = parts.filter(sound.not_().fill_null(True))
    return str(bad["slide"][0]) if bad.height else None


def _root(table: artifacts.Table) -> Path:
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return Path(given).absolute()
    return table.file("root") if "root" in table.header.files else Path.cwd()


def _absolute(found: slide.Slide, start: Path) -> slide.Slide:
    if store.is_remote(found.uri):
        return found
    return dataclasses.replace(found, uri=os.path.join(start, found.uri))
