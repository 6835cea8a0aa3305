"""A `slides`, `tissue` or `patches` artifact opened for reading: its slides and their pixels."""

from __future__ import annotations

import dataclasses
import os

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.wsi import pyramid, rows


@dataclasses.dataclass(frozen=True, slots=True)
class Cohort:
    """An opened artifact.

    Attributes:
        table: the artifact as it is in the file.
        slides: slides that can be read (rows without error), in row order, with absolute uris.
        reader: reads their pixels; picklable.
    """

    table: artifacts.Table
    slides: rows.Slides
    reader: pyramid.Reader

    @property
    def remote(self) -> bool:
        """Whether any slide lies behind a URL."""
        return self.slides.remote


def open_cohort(
    path: str | os.PathLike[str], *, policy: pyramid.Policy = "finer", idct: bool = True
) -> Cohort:
    """Open an artifact that knows its slides.

    A `patches` artifact carries them as the attached table `slides`.

    Args:
        path: of the artifact.
        policy: of the reader, see `pyramid.Reader`.
        idct: of the reader.

    Raises:
        errors.InputError: missing, damaged or of another kind, or its tile table is gone.
    """
    table = artifacts.read_table(path, *rows.KINDS)
    reader = pyramid.Reader(table.file("tiles"), policy=policy, idct=idct)
    return Cohort(table, rows.readable(table), reader)


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
    """The rows about slides, bad ones included; see `rows.about_slides`."""
    return rows.about_slides(table)


def companions(table: artifacts.Table, out: str | os.PathLike[str]) -> dict[str, str]:
    """`Header.files` for an artifact `out` made from `table`: the same files, seen from there."""
    here = os.path.abspath(table.path.parent)
    there = os.path.dirname(os.path.abspath(out))
    return {
        name: os.path.relpath(os.path.join(here, relative), there)
        for name, relative in table.header.files.items()
        if name in ("tiles", "root")
    }
