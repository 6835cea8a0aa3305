"""What the arguments of `pathfm index` mean: files, folders, globs, URLs and tables of slides."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib import parse

from pathfm_cli import errors
from pathfm_cli.data import metadata
from pathfm_cli.wsi import series, store

READABLE = (".svs", ".tif", ".tiff", ".btf", ".tf8")
DICOM = series.SUFFIX
FOREIGN = (".ndpi", ".mrxs", ".scn", ".bif", ".czi", ".vms", ".vsi", ".qptiff", ".svslide", DICOM)
"""Slides of other formats: in a folder they become error rows instead of being passed over."""
TABLES = (".csv", ".tsv", ".parquet")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What no id may hold: it names files and is printed."""
_COMPOUND = (".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf8")


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A slide to index.

    Attributes:
        slide: its id.
        path: absolute path, or URL.
        columns: columns of the table that listed it.
        size_bytes: of a remote file, where its listing told.
        etag: likewise.
    """

    slide: str
    path: str
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size_bytes: int | None = None
    etag: str | None = None


def slide_id(name: str) -> str:
    """File name without folder and slide suffix: `a/B1.ome.tif` is `B1`."""
    base = os.path.basename(name)
    lower = base.lower()
    for suffix in (*_COMPOUND, *READABLE, *FOREIGN):
        if lower.endswith(suffix) and len(base) > len(suffix):
            return base[: -len(suffix)]
    return base


def expand(arguments: Sequence[str]) -> list[Source]:
    """Turn arguments into slides, sorted by id; the same file named twice counts once.

    Args:
        arguments: slide files, folders (searched with their subfolders), glob patterns, tables
            (CSV, TSV, Parquet) with a column `path` or `uri`, and URLs: of slides, of prefixes
            (listed with all below them), and patterns in buckets.

    Raises:
        errors.InputError: an argument matches nothing, or a bucket cannot be listed.
        errors.UsageError: two slides share an id, a table lists no paths, or a URL is wrong.
    """
    return unique(source for argument in arguments for source in _expand(argument))


def unique(sources: Iterable[Source]) -> list[Source]:
    """The sources sorted by slide id; the same file twice counts once.

    Raises:
        errors.UsageError: two slides share an id.
    """
    found: dict[str, Source] = {}
    for source in sources:
        found.setdefault(source.path, source)
    slides: dict[str, Source] = {}
    for source in found.values():
        other = slides.setdefault(source.slide, source)
        if other is not source:
            raise errors.UsageError(
                f"Two slides have the id {source.slide}: {other.path} and {source.path}.",
                "name them in a table with the columns path and slide: pathfm index list.csv",
            )
    return [slides[name] for name in sorted(slides)]


def _expand(argument: str) -> list[Source]:
    if store.is_remote(argument):
        return _remote(argument)
    path = Path(os.path.expanduser(argument))
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return _table(path) if path.suffix.lower() in TABLES else [_source(path)]
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(argument) else []
    if not matches:
        raise errors.InputError(f"{argument} does not exist.", "pathfm index slides/ -o s.parquet")
    return [source for match in matches for source in _expand(match)]


def _remote(uri: str) -> list[Source]:
    """Slides behind a URL: one, those below a prefix, or those that match a pattern."""
    # obstore, and with it the network, only where something is remote.
    from pathfm_cli.wsi import remote

    _refuse_address(uri)
    base, name = remote.split(uri)
    suffixes = READABLE + FOREIGN
    pattern = bool(glob.has_magic(name)) and not base.startswith("http")
    if not pattern and name.lower().endswith(suffixes):
        return [_link(uri)]
    if base.startswith("http"):
        raise errors.UsageError(
            f"{uri} names no slide, and a web server cannot be listed.",
            "name the slides, or a table with a column uri: pathfm index list.csv",
        )
    if name.lower().endswith(TABLES):
        raise errors.UsageError(f"{uri}: a table must lie on disk.", "copy it here first")
    fixed = re.split(r"[*?\[]", name)[0].rpartition("/")[0] if pattern else name
    try:
        listed = remote.listing(f"{base}/{fixed}".rstrip("/"))
    except errors.SlideError as error:
        raise errors.InputError(f"{str(error).rstrip('.')}.", error.hint) from error
    wanted = re.compile(_pattern(name) if pattern else ".*", re.DOTALL)
    found = [
        _link(entry.uri)
        if entry.uri.lower().endswith(DICOM)
        else Source(slide_id(entry.uri), entry.uri, {}, entry.size, entry.etag)
        for entry in listed
        if entry.uri.lower().endswith(suffixes) and wanted.fullmatch(remote.split(entry.uri)[1])
    ]
    if not found:
        raise errors.InputError(
            f"{uri} holds no slide among {len(listed)} objects.",
            f"looked for {' '.join(suffixes)}",
        )
    return found


def _refuse_address(uri: str) -> None:
    """Refuse an address of no known store, or with secrets that an index would keep."""
    from pathfm_cli.wsi import remote

    try:
        remote.split(uri)
    except errors.SlideError as error:
        raise errors.UsageError(f"{str(error).rstrip('.')}.", error.hint) from error


def _link(uri: str) -> Source:
    """One remote slide, whatever its name; a DICOM file stands for its folder."""
    if uri.lower().endswith(DICOM):
        if uri.startswith("http"):
            raise errors.UsageError(
                f"{uri} is one file of a DICOM slide, and a web server cannot be listed.",
                "name it in its bucket: s3://BUCKET/SERIES/",
            )
        folder = uri.rpartition("/")[0]
        return Source(folder.rpartition("/")[2], f"{folder}/")
    return Source(slide_id(parse.unquote(uri) if uri.startswith("http") else uri), uri)


def _pattern(name: str) -> str:
    """A glob as a regular expression: `*` and `?` stay inside a folder, `**/` does not."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]/]+\])", name)
    return "".join(
        pieces.get(part) or (part.replace("[!", "[^") if part[:1] == "[" else re.escape(part))
        for part in parts
        if part
    )


def _folder(folder: Path) -> list[Source]:
    """Slides in a folder and below it; links to folders are followed, each folder once."""
    suffixes = READABLE + FOREIGN
    found: list[Source] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_unlisted, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [
            _source(Path(parent) / name)
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    if not found:
        raise errors.InputError(
            f"{folder} holds no slide.", f"looked for {' '.join(suffixes)} in it and below"
        )
    return found


def _unlisted(error: OSError) -> None:
    raise errors.InputError(
        f"{error.filename} cannot be listed: {error.strerror}.", "name the slides themselves"
    ) from error


def _table(path: Path) -> list[Source]:
    """Rows of a table that lists slides; relative paths start at its folder and stay below."""
    frame = metadata.read(path)
    column = next((name for name in ("path", "uri") if name in frame.columns), None)
    if column is None:
        raise errors.UsageError(
            f"{path} lists no slides: it has no column `path` or `uri`.",
            f"to join it to slides: pathfm index slides/ --metadata {path}",
        )
    metadata.check_columns(path, frame.columns, allowed=(column, "slide"))
    if frame.is_empty():
        raise errors.InputError(f"{path} lists no slides: it has no row.", "a row a slide")
    listed = []
    for row in frame.iter_rows(named=True):
        name = row.pop(column)
        if not name:
            raise errors.UsageError(
                f"{path} has a row without a {column}.", "fill it in or delete it"
            )
        if store.is_remote(str(name)):
            _refuse_address(str(name))
            source = _link(str(name))
        else:
            source = _source(metadata.place(path, str(name)))
        given = row.pop("slide", None)
        listed.append(dataclasses.replace(source, columns=row))
        if given and _CONTROL.search(str(given)):
            raise errors.UsageError(
                f"{path} has the slide id {given!a}, with control characters.", "rename the slide"
            )
        if given:
            listed[-1] = dataclasses.replace(listed[-1], slide=str(given))
    return listed


def _source(path: Path) -> Source:
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError as error:
        raise errors.UsageError(f"{absolute!a} is no UTF-8 name.", "rename the file") from error
    if absolute.lower().endswith(DICOM):
        folder = os.path.dirname(absolute)
        return Source(os.path.basename(folder), f"{folder}/")
    return Source(slide_id(absolute), absolute)
