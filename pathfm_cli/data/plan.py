"""What `pathfm index` has to do: which slides, with which settings, and what is done already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.data import gdc, headers, metadata, sources
from pathfm_cli.data import journal as journals
from pathfm_cli.wsi import mpp, rendered, series, store, tiles

Kept = tuple[headers.Row, tiles.TileTable]

_CLASH_HINT = "another -o, or --overwrite to replace it"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        out: the Parquet file to write.
        files: the slides, sorted by id.
        extras: one row per slide, `slide` and the columns of the user's tables.
        overrides: slide id to mpp; "" for slides without a trustworthy one.
        header: the header of the artifact.
        kept: uri to row and its tile table, for slides that need no reading: rows of the old
            artifact, and of a run of the same command that was killed.
        journal: where this run keeps what it has read.
        replaced: the tile table of the old artifact.
        record: the record of the finished artifact, if it is up to date.
        notes: sentences for the user.
    """

    out: Path
    files: tuple[headers.File, ...]
    extras: pl.DataFrame
    overrides: Mapping[str, float]
    header: artifacts.Header
    kept: Mapping[str, Kept]
    journal: journals.Journal
    replaced: tiles.TileTable | None
    record: dict[str, Any] | None
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """What a dry run tells."""
        sizes = [file.size_bytes for file in self.files if file.size_bytes is not None]
        return {
            "slides": len(self.files),
            "unchanged": len(self.files) if self.record else len(self.kept),
            "missing": len(self.files) - len(sizes),
            "bytes": sum(sizes),
            "writes": [str(self.out), str(self.out.parent / self.header.files["tiles"])],
            "notes": list(self.notes),
        }


def check(
    out: Path,
    table: Path | None = None,
    mpp_overrides: Sequence[str] = (),
    root: Path | None = None,
    *,
    overwrite: bool = False,
    manifest: Path | None = None,
) -> None:
    """Refuse what is wrong whatever the slides are; the arguments are those of `prepare`.

    Raises:
        errors.UsageError: an override is no mpp, a metadata table cannot be joined, `root` is no
            folder, or `out` cannot be written.
        errors.InputError: the metadata table or the manifest is missing or cannot be read.
        errors.OutputClash: `out` is something else than an index.
    """
    for assignment in mpp_overrides:
        mpp.parse_override(assignment.rpartition("=")[2])
    if table is not None:
        metadata.load(table)
    if manifest is not None:
        gdc.read(manifest)
    if root is not None and not root.is_dir():
        raise errors.UsageError(f"--root {root} is no folder.", "a folder above the slides")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise errors.UsageError(f"{folder} cannot be written to.", "name another -o")
    if os.path.lexists(out) and not overwrite:
        try:
            kind = artifacts.read_header(out).kind
        except errors.InputError as error:
            raise errors.OutputClash(
                f"{out} exists and is no pathfm artifact.", _CLASH_HINT
            ) from error
        if kind != "slides":
            raise errors.OutputClash(f"{out} exists and is of kind {kind}.", _CLASH_HINT)


def prepare(
    arguments: Sequence[str],
    out: Path,
    table: Path | None = None,
    mpp_overrides: Sequence[str] = (),
    root: Path | None = None,
    *,
    overwrite: bool = False,
    manifest: Path | None = None,
) -> Plan:
    """Check every argument and look at every file's size, but open no slide.

    Args:
        arguments: see `sources.expand`.
        out: the Parquet file to write.
        table: metadata to join by slide name.
        mpp_overrides: `SLIDE=X` sets a slide's mpp; `X` fills in where none is trustworthy.
        root: store uris relative to this folder.
        overwrite: replace a result made with other settings.
        manifest: slides of TCGA, see `gdc`; besides those of `arguments`.

    Raises:
        errors.UsageError: an argument or a table is wrong.
        errors.InputError: something named does not exist.
        errors.OutputClash: `out` holds something else.
    """
    check(out, table, mpp_overrides, root, overwrite=overwrite)
    manifested, told = gdc.read(manifest) if manifest is not None else ([], ())
    listed = sources.unique([*sources.expand(arguments), *manifested])
    names = [source.slide for source in listed]
    overrides = _overrides(mpp_overrides, names)
    extras, notes = _extras(listed, table)
    notes = told + notes
    files = _files(listed, root)
    settings: dict[str, Any] = {
        "files": _digest([[f.source.slide, f.uri, f.size_bytes, f.etag] for f in files]),
        "metadata": _digest([extras.columns, extras.rows()]) if extras.width > 1 else "",
        "mpp_override": dict(sorted(overrides.items())),
    }
    companions = {}
    if root is not None:
        companions["root"] = os.path.relpath(root, os.path.dirname(os.path.abspath(out)))
        settings["root"] = companions["root"]
    header = artifacts.Header(kind="slides", settings=settings)
    companions["tiles"] = f"{out.stem}.tiles-{header.id}.safetensors"
    header = dataclasses.replace(header, files=companions)
    plan = Plan(
        out=out,
        files=files,
        extras=extras,
        overrides=overrides,
        header=header,
        kept={},
        journal=journals.Journal.beside(out, header),
        replaced=None,
        record=None,
        notes=notes,
    )
    plan = plan if overwrite or not os.path.lexists(out) else _compare(plan)
    return plan if plan.record is not None else _go_on(plan)


def _compare(plan: Plan) -> Plan:
    """Compare with what `out` holds: up to date, other files (keep what is unchanged), or a clash.

    Raises:
        errors.OutputClash: `out` has other settings, or shares no file.
    """
    record = _finished(plan)
    old = artifacts.read_table(plan.out, "slides")
    try:
        table = tiles.TileTable.open(old.file("tiles"))
    except errors.InputError:
        return plan
    if record is not None and not _may_pass(old.frame):
        return dataclasses.replace(plan, record=record)
    rows = old.frame.select(list(headers.SCHEMA)).iter_rows(named=True)
    before = {rendered.plain(row["uri"]): row for row in rows}
    gone = len(before.keys() - {file.uri for file in plan.files})
    if gone == len(before):
        raise errors.OutputClash(f"{plan.out} is an index of other slides.", _CLASH_HINT)
    kept = {
        file.uri: (before[file.uri], table)
        for file in plan.files
        if file.uri in before and _unchanged(file, before[file.uri])
    }
    notes = (*plan.notes, f"{len(kept)} of {len(plan.files)} slides are unchanged")
    if gone:
        notes = (*notes, f"{gone} slides of the old index are not named any more: left out")
    return dataclasses.replace(plan, kept=kept, replaced=table, notes=notes)


def _go_on(plan: Plan) -> Plan:
    """Add what the same command had read before it was killed."""
    files = {file.uri: file for file in plan.files if file.uri not in plan.kept}
    found = {
        uri: (row, table)
        for row, table in plan.journal.rows()
        if (uri := rendered.plain(row["uri"])) in files and _unchanged(files[uri], row)
    }
    if not found:
        return plan
    notes = (*plan.notes, f"{len(found)} of {len(plan.files)} slides were read before: going on")
    return dataclasses.replace(plan, kept={**plan.kept, **found}, notes=notes)


def _may_pass(rows: pl.DataFrame) -> bool:
    """Whether a slide behind a URL failed: the network or the server may be well again."""
    failed = rows.filter(pl.col("error").is_not_null())
    return any(store.is_remote(uri) for uri in failed["uri"])


def _unchanged(file: headers.File, row: headers.Row) -> bool:
    """Whether a row of the old index still holds; one with an error is always read again."""
    return row["error"] is None and (row["slide"], row["size_bytes"], row["etag"]) == (
        file.source.slide,
        file.size_bytes,
        file.etag,
    )


def _finished(plan: Plan) -> dict[str, Any] | None:
    """As `artifacts.finished`, but other files (and metadata with them) are no clash."""
    old = artifacts.read_header(plan.out, "slides")
    same = dict(plan.header.settings)
    if old.settings.get("files") != same["files"]:
        same |= {name: old.settings.get(name) for name in ("files", "metadata")}
        artifacts.finished(plan.out, dataclasses.replace(plan.header, settings=same))
        return None
    return artifacts.finished(plan.out, plan.header)


def _overrides(assignments: Sequence[str], slides: Sequence[str]) -> dict[str, float]:
    """Slide id to mpp; the id "" holds the value for slides without a trustworthy mpp."""
    overrides: dict[str, float] = {}
    for assignment in assignments:
        name, _, value = assignment.rpartition("=")
        slide = sources.slide_id(name) if name else ""
        if slide and slide not in slides:
            raise errors.UsageError(
                f"--mpp-override {assignment}: there is no slide {name}.",
                f"a slide is named like {slides[0]}",
            )
        if slide in overrides:
            raise errors.UsageError(f"--mpp-override {assignment}: given twice.", "give it once")
        overrides[slide] = mpp.parse_override(value)
    return overrides


def _extras(
    listed: Sequence[sources.Source], table: Path | None
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """One row per slide: `slide` and the columns of the source table and of the metadata table."""
    rows = [{"slide": source.slide, **source.columns} for source in listed]
    extras = pl.DataFrame(rows, infer_schema_length=None)
    if table is None:
        return extras, ()
    frame, notes = metadata.join(table, extras["slide"].to_list(), sources.slide_id)
    if twice := sorted(set(extras.columns) & set(frame.columns) - {"slide"}):
        raise errors.UsageError(
            f"{table} and the table of slides both have a column {twice[0]}.", "rename one of them"
        )
    return extras.join(frame, on="slide", how="left", maintain_order="left"), notes


def _files(listed: Sequence[sources.Source], root: Path | None) -> tuple[headers.File, ...]:
    """The version of every slide; remote ones that no listing told are asked for at once."""
    unknown = [source.path for source in listed if store.is_remote(source.path) and not source.etag]
    versions: Mapping[str, Any] = {}
    if unknown:
        from pathfm_cli.wsi import remote

        versions = remote.versions(unknown)
    return tuple(
        _object(source, versions.get(source.path))
        if store.is_remote(source.path)
        else _file(source, root)
        for source in listed
    )


def _object(source: sources.Source, version: Any) -> headers.File:
    """A remote slide; `version` is a `remote.Entry`, an error, or None if a listing told it."""
    if version is None:
        return headers.File(source, source.path, source.size_bytes, source.etag)
    if isinstance(version, errors.SlideError):
        return headers.File(source, source.path, None, None, str(version))
    if source.size_bytes not in (None, version.size):
        problem = f"it has {version.size} bytes, not {source.size_bytes} as its manifest says"
        return headers.File(source, source.path, version.size, version.etag, problem)
    return headers.File(source, source.path, version.size, version.etag)


def _file(source: sources.Source, root: Path | None) -> headers.File:
    uri = source.path
    if root is not None:
        uri = os.path.relpath(source.path, root)
        # A link below the folder may lead anywhere; only what lies there is of this root.
        outside = not Path(os.path.realpath(source.path)).is_relative_to(os.path.realpath(root))
        if uri.startswith(os.pardir + os.sep) or outside:
            raise errors.UsageError(
                f"{source.path} is not below --root {root}.",
                "a folder above all slides, and above what their links lead to",
            )
    if series.is_series(source.path):
        try:
            whole = series.Series.open(source.path)
        except errors.SlideError as error:
            return headers.File(source, uri, None, None, str(error))
        return headers.File(source, f"{uri.rstrip('/')}/", whole.size, whole.etag)
    try:
        status = os.stat(source.path)
    except OSError:
        return headers.File(source, uri, None, None)
    return headers.File(source, uri, status.st_size, str(status.st_mtime_ns))


def _digest(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
