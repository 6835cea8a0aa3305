"""A `slides`, `tissue` or `patches` artifact opened for reading: its slides and their pixels."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.wsi import pyramid

KINDS = ("slides", "tissue", "patches")
ROOT_VARIABLE = "PATHFM_ROOT"
"""Environment variable: where relative uris start, when not where the index was told."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cohort:
    """An opened artifact.

    Attributes:
        table: the artifact as it is in the file.
        slides: slides that can be read (rows without error), in row order, with absolute uris.
        reader: reads their pixels; picklable.
    """

    table: artifacts.Table
    slides: list[pyramid.Slide]
    reader: pyramid.Reader


def open_cohort(path: str | os.PathLike[str]) -> Cohort:
    """Open an artifact that knows its slides.

    A `patches` artifact carries them as the attached table `slides`.

    Raises:
        errors.InputError: missing, damaged or of another kind, or its tile table is gone.
    """
    table = artifacts.read_table(path, *KINDS)
    frame = slide_rows(table)
    start = _root(table)
    try:
        slides = [
            _absolute(pyramid.Slide.from_row(row), start)
            for row in frame.filter(pl.col("error").is_null()).iter_rows(named=True)
        ]
    except (errors.SlideError, KeyError, TypeError) as error:
        raise errors.InputError(f"{path} has a damaged row of slides ({error}).") from error
    return Cohort(table, slides, pyramid.Reader(table.file("tiles")))


def require_usable(header: artifacts.Header, path: str | os.PathLike[str]) -> None:
    """See that not every slide of a `slides` or `tissue` artifact carries an error.

    Raises:
        errors.InputError: every one does.
    """
    if header.rows and header.rows == header.failed:
        raise errors.InputError(
            f"None of the {header.rows} slides of {path} can be used.",
            "see its column error, or what index and mask said",
        )


def slide_rows(table: artifacts.Table) -> pl.DataFrame:
    """The rows about slides of a `slides`, `tissue` or `patches` artifact, bad ones included.

    Raises:
        errors.InputError: a `patches` artifact without its slides.
    """
    if table.header.kind != "patches":
        return table.frame
    if "slides" not in table.attached:
        raise errors.InputError(f"{table.path} does not carry its slides.")
    return table.attached["slides"]


def companions(table: artifacts.Table, out: str | os.PathLike[str]) -> dict[str, str]:
    """`Header.files` for an artifact `out` made from `table`: the same files, seen from there."""
    here = os.path.abspath(table.path.parent)
    there = os.path.dirname(os.path.abspath(out))
    return {
        name: os.path.relpath(os.path.join(here, relative), there)
        for name, relative in table.header.files.items()
        if name in ("tiles", "root")
    }


def _root(table: artifacts.Table) -> Path:
    given = os.environ.get(ROOT_VARIABLE)
    if given:
        return Path(given).absolute()
    return table.file("root") if "root" in table.header.files else Path.cwd()


def _absolute(slide: pyramid.Slide, start: Path) -> pyramid.Slide:
    return dataclasses.replace(slide, uri=os.path.join(start, slide.uri))
