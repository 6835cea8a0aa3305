"""From the rows of a `slides`, `tissue` or `patches` artifact to slides that can be read."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.wsi import slide, store

KINDS = ("slides", "tissue", "patches")
ROOT_VARIABLE = "PATHFM_ROOT"
"""Environment variable: where relative uris start, when not where the index was told."""


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


def readable(table: artifacts.Table) -> list[slide.Slide]:
    """Slides of the rows without error, in row order, local uris absolute.

    Raises:
        errors.InputError: a row is damaged, or as `about_slides`.
    """
    frame = about_slides(table)
    start = _root(table)
    try:
        return [
            _absolute(slide.Slide.from_row(row), start)
            for row in frame.filter(pl.col("error").is_null()).iter_rows(named=True)
        ]
    except (errors.SlideError, KeyError, TypeError) as error:
        raise errors.InputError(f"{table.path} has a damaged row of slides ({error}).") from error


def _root(table: artifacts.Table) -> Path:
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return Path(given).absolute()
    return table.file("root") if "root" in table.header.files else Path.cwd()


def _absolute(found: slide.Slide, start: Path) -> slide.Slide:
    if store.is_remote(found.uri):
        return found
    return dataclasses.replace(found, uri=os.path.join(start, found.uri))
