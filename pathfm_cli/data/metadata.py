"""Tables about slides (CSV, TSV, Parquet), joined to an index by slide name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from pathfm_cli import errors, kinds, parquet

KEYS = ("slide", "filename", "path")
"""Columns that may name the slide, in this order."""
FILLED = ("stain",)
"""Columns of an index that a table may fill."""
PACKED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x28\xb5\x2f\xfd")
"""How gzip, zlib and zstd begin, which polars recognizes."""


def read(path: Path) -> pl.DataFrame:
    """Read a table by its suffix.

    Raises:
        errors.InputError: it is missing or cannot be read.
        errors.UsageError: unknown suffix, or two columns of one name.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise errors.UsageError(f"{path} is no table.", "name a .csv, .tsv or .parquet file")
    if not path.is_file():
        raise errors.InputError(f"{path} does not exist.", "name a .csv, .tsv or .parquet file")
    try:
        if suffix == ".parquet":
            return parquet.read(path)
        refuse_packed(path)
        separator = "," if suffix == ".csv" else "\t"
        with parquet.guard():
            frame = pl.read_csv(path, separator=separator, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise errors.InputError(
            f"{path} cannot be read as a table: {reason}.", "its first line names the columns"
        ) from error
    if twice := [name for name in frame.columns if re.search(r"_duplicated_\d+$", name)]:
        name = twice[0].rpartition("_duplicated_")[0]
        raise errors.UsageError(f"{path} has two columns {name}.", "keep one of them")
    return frame


def refuse_packed(path: Path) -> None:
    """Refuse a table of text that is compressed: polars would unpack it silently, to any size.

    Raises:
        errors.InputError: it is.
    """
    with path.open("rb") as file:
        if file.read(4).startswith(PACKED):
            raise errors.InputError(f"{path} is compressed.", "unpack it: gzip -dc, or zstd -dc")


def check_columns(path: Path, columns: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse columns that an index or a tissue artifact writes itself.

    Raises:
        errors.UsageError: a name clashes.
    """
    reserved = {
        column.name for kind in ("slides", "tissue") for column in kinds.KINDS[kind].columns
    }
    clash = [name for name in columns if name in reserved - {*allowed, *FILLED}]
    if clash:
        raise errors.UsageError(
            f"{path} has a column {clash[0]}, which the index writes itself.",
            f"rename it, for example to my_{clash[0]}",
        )


def place(table: Path, name: str) -> Path:
    """A path that a table names: absolute as it is, or relative to the table and below it.

    A table that is handed around cannot so lead out of the folder it came with by `..`.

    Raises:
        errors.UsageError: it leads out, or is no path.
    """
    if "\0" in name:
        raise errors.UsageError(f"{table} names {name!a}, which is no path.", "mend that row")
    path = Path(os.path.expanduser(name))
    if path.is_absolute():
        return path
    if os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise errors.UsageError(
            f"{table} names {name}, which leads out of the table's folder.",
            "absolute paths are taken as they are; or move the table above what it names",
        )
    return table.parent / path


def load(path: Path) -> pl.DataFrame:
    """Read a table to join: its column that names the slide comes first.

    Raises:
        errors.InputError: as `read`.
        errors.UsageError: no column names the slide, one does not in every row, or a column clashes
            with the index's own.
    """
    frame = read(path)
    key = next((name for name in KEYS if name in frame.columns), None)
    if key is None:
        raise errors.UsageError(
            f"{path} has no column `slide`, `filename` or `path` to join by.",
            f"it has: {', '.join(frame.columns)}",
        )
    check_columns(path, frame.columns, allowed=(key,))
    if frame[key].null_count():
        raise errors.UsageError(f"{path} has a row without a {key}.", "fill it in or delete it")
    return frame.select(key, pl.exclude(key))


def join(
    path: Path, slides: Sequence[str], identify: Callable[[str], str]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Match the rows of a table to slides.

    Args:
        path: the table.
        slides: slide ids.
        identify: turns a file name into a slide id.

    Returns:
        A frame with the column `slide` (those of `slides` that have a row) and the other columns,
        and sentences about what did not match.

    Raises:
        errors.UsageError: as `load`, two rows are for one slide, or no row matches.
    """
    frame = load(path)
    names = [identify(str(value)) for value in frame.to_series(0).to_list()]
    frame = frame.drop(frame.columns[0]).with_columns(pl.Series("slide", names, pl.String))
    if twice := frame.filter(pl.col("slide").is_duplicated())["slide"].to_list():
        raise errors.UsageError(
            f"{path} has two rows for the slide {twice[0]}.", "keep one row a slide"
        )
    known = frame.filter(pl.col("slide").is_in(list(slides)))
    if known.is_empty():
        raise errors.UsageError(
            f"{path} names none of the slides: {names[0] if names else 'it is empty'}.",
            f"a slide is named like {slides[0]}",
        )
    return known, _unmatched(path, names, slides)


def _unmatched(path: Path, names: Sequence[str], slides: Sequence[str]) -> tuple[str, ...]:
    without = sorted(set(slides) - set(names))
    unused = sorted(set(names) - set(slides))
    sentences = []
    if without:
        sentences.append(
            f"{len(without)} of {len(slides)} slides have no row in {path}: {_some(without)}"
        )
    if unused:
        sentences.append(
            f"{len(unused)} of {len(names)} rows of {path} match no slide: {_some(unused)}"
        )
    return tuple(sentences)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
