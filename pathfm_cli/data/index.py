"""Slide files to a `slides` artifact: one row per slide, and a tile table beside it.

Only headers and tile tables are read (DESIGN, idea 3). A slide that cannot be used is a row with
`error`. Rows are sorted by slide id and hold no time stamps, so the same files give the same
artifact; its id follows (uri, size, etag) of every file.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.data import headers, metadata, sources
from pathfm_cli.wsi import mpp, pyramid, tiles

_Read = tuple[headers.Row, tuple[headers.Plane, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `index` will do: `kept` are rows of the old artifact that need no reading."""

    out: Path
    files: tuple[headers.File, ...]
    extras: pl.DataFrame
    overrides: Mapping[str, float]
    header: artifacts.Header
    kept: Mapping[str, headers.Row]
    old_tiles: Path | None
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


@dataclasses.dataclass(frozen=True, slots=True)
class Indexed:
    """The finished artifact: its record, what to tell, and (slide, error) of the bad slides."""

    record: dict[str, Any]
    notes: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    summary: tuple[str, ...] = ()


def prepare(
    arguments: Sequence[str],
    out: Path,
    *,
    table: Path | None = None,
    mpp_overrides: Sequence[str] = (),
    root: Path | None = None,
    overwrite: bool = False,
) -> Plan:
    """Check every argument and look at every file's size, but open no slide.

    Args:
        arguments: see `sources.expand`.
        out: the Parquet file to write.
        table: metadata to join by slide name.
        mpp_overrides: `SLIDE=X` sets a slide's mpp; `X` fills in where none is trustworthy.
        root: store uris relative to this folder.
        overwrite: replace a result made with other settings.

    Raises:
        errors.UsageError: an argument or a table is wrong.
        errors.InputError: something named does not exist.
        errors.OutputClash: `out` holds something else.
    """
    listed = sources.expand(arguments)
    names = [source.slide for source in listed]
    overrides = _overrides(mpp_overrides, names)
    extras, notes = _extras(listed, table)
    files = tuple(_file(source, root) for source in listed)
    settings: dict[str, Any] = {
        "files": _digest([[file.uri, file.size_bytes, file.etag] for file in files]),
        "metadata": _digest(extras.rows()) if extras.width > 1 else "",
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
        old_tiles=None,
        record=None,
        notes=notes,
    )
    return plan if overwrite or not os.path.lexists(out) else _resume(plan)


def check(out: Path, mpp_overrides: Sequence[str], *, overwrite: bool = False) -> None:
    """Refuse what is wrong whatever the slides are; touches no slide.

    Raises:
        errors.UsageError: an override is no mpp, or `out` cannot be written.
        errors.OutputClash: `out` is something else than an index.
    """
    for assignment in mpp_overrides:
        mpp.parse_override(assignment.rpartition("=")[2])
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise errors.UsageError(f"{folder} cannot be written to.", "name another -o")
    if os.path.lexists(out) and not overwrite:
        hint = "another -o, or --overwrite to replace it"
        try:
            kind = artifacts.read_header(out).kind
        except errors.InputError as error:
            raise errors.OutputClash(f"{out} exists and is no pathfm artifact.", hint) from error
        if kind != "slides":
            raise errors.OutputClash(f"{out} exists and is of kind {kind}.", hint)


def index(
    plan: Plan,
    *,
    workers: int = 0,
    max_failed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Read the slides of a plan and write the artifact.

    Args:
        plan: see `prepare`.
        workers: threads; 0 means one per core.
        max_failed: give up when more slides than this fail.
        progress: told (done, total).

    Raises:
        errors.TooManyFailures: more than `max_failed` slides failed.
    """
    if plan.record is not None:
        notes = (*plan.notes, f"{plan.out} is up to date")
        return _indexed(plan.record, artifacts.read_table(plan.out).frame, notes)
    old = tiles.TileTable.open(plan.old_tiles) if plan.old_tiles else None
    writer = tiles.Writer()
    rows: list[headers.Row] = []
    failed: list[tuple[str, str]] = []
    for number, (row, planes) in enumerate(_read_all(plan, workers), 1):
        _place(row, planes, writer, old)
        rows.append(row)
        if row["error"]:
            failed.append((row["slide"], row["error"]))
        if max_failed is not None and len(failed) > max_failed:
            raise errors.TooManyFailures(
                f"{len(failed)} slides failed, more than --max-failed {max_failed}; the last is "
                f"{failed[-1][0]}: {failed[-1][1]}."
            )
        progress(number, len(plan.files))
    frame = _frame(rows, plan.extras)
    writer.write(plan.out.parent / plan.header.files["tiles"], plan.header.id)
    record = artifacts.write_table(plan.out, frame, plan.header)
    notes = plan.notes
    if plan.old_tiles:
        notes += (f"kept {plan.old_tiles}: artifacts made from the old index may need it",)
    return _indexed(record, frame, notes)


def _resume(plan: Plan) -> Plan:
    """Compare with what `out` holds: up to date, other files (keep what is unchanged), or a clash.

    Raises:
        errors.OutputClash: `out` is no index, has other settings, or shares no file.
    """
    check(plan.out, ())
    record = _finished(plan)
    old = artifacts.read_table(plan.out, "slides")
    if record is not None:
        try:
            old.file("tiles")
        except errors.InputError:
            return plan
        return dataclasses.replace(plan, record=record)
    before = {
        row["uri"]: row for row in old.frame.select(list(headers.SCHEMA)).iter_rows(named=True)
    }
    now = {file.uri for file in plan.files}
    if not now & set(before):
        raise errors.OutputClash(
            f"{plan.out} is an index of other slides.", "another -o, or --overwrite to replace it"
        )
    kept = {
        file.uri: row
        for file in plan.files
        if (row := before.get(file.uri))
        and row["error"] is None
        and row["slide"] == file.source.slide
        and (row["size_bytes"], row["etag"]) == (file.size_bytes, file.etag)
    }
    notes = (*plan.notes, f"{len(kept)} of {len(plan.files)} slides are unchanged")
    if gone := len(set(before) - now):
        notes = (*notes, f"{gone} slides of the old index are not named any more: left out")
    return dataclasses.replace(
        plan, kept=kept, old_tiles=old.file("tiles") if kept else None, notes=notes
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
            raise errors.UsageError(f"--mpp-override {assignment}: given twice.")
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
    frame, notes = metadata.join(
        table, metadata.read(table), extras["slide"].to_list(), sources.slide_id
    )
    if twice := sorted(set(extras.columns) & set(frame.columns) - {"slide"}):
        raise errors.UsageError(
            f"{table} and the table of slides both have a column {twice[0]}.", "rename one of them"
        )
    return extras.join(frame, on="slide", how="left", maintain_order="left"), notes


def _file(source: sources.Source, root: Path | None) -> headers.File:
    uri = source.path
    if root is not None:
        uri = os.path.relpath(source.path, root)
        if uri.startswith(os.pardir + os.sep):
            raise errors.UsageError(f"{source.path} is not below --root {root}.")
    try:
        status = os.stat(source.path)
    except OSError:
        return headers.File(source, uri, None, None)
    return headers.File(source, uri, status.st_size, str(status.st_mtime_ns))


def _digest(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_all(plan: Plan, workers: int) -> Iterator[_Read]:
    """Rows in the order of the plan, read by threads that stay a few slides ahead."""
    count = workers or os.cpu_count() or 1
    with futures.ThreadPoolExecutor(count) as pool:
        waiting: collections.deque[futures.Future[_Read]] = collections.deque()
        try:
            for file in plan.files:
                waiting.append(pool.submit(_read, file, plan))
                if len(waiting) > 4 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(file: headers.File, plan: Plan) -> _Read:
    if file.uri in plan.kept:
        return dict(plan.kept[file.uri]), ()
    return headers.read(file, plan.overrides)


def _place(
    row: headers.Row,
    planes: Sequence[headers.Plane],
    writer: tiles.Writer,
    old: tiles.TileTable | None,
) -> None:
    """Put the tiles of a slide into the table and the places into its row."""
    if planes:
        places = [writer.add(level.offsets, level.counts, level.plane.prefix) for level in planes]
        row["levels"] = headers.levels(planes, [dataclasses.asdict(place) for place in places])
    elif row["levels"] and old is not None:
        slide = pyramid.Slide.from_row(row)
        row["levels"] = [
            {**fields, **dataclasses.asdict(writer.copy(old, level.place))}
            for fields, level in zip(row["levels"], slide.levels, strict=True)
        ]


def _frame(rows: Sequence[headers.Row], extras: pl.DataFrame) -> pl.DataFrame:
    """The table, in the order of kinds.py, then the columns of the user's tables."""
    frame = pl.DataFrame(rows, schema=headers.SCHEMA)
    if "stain" in extras.columns:
        frame = frame.with_columns(extras["stain"].cast(pl.String).alias("stain"))
    more = [name for name in extras.columns if name not in ("slide", "stain")]
    return frame.hstack(extras.select(more)) if more else frame


def _indexed(record: dict[str, Any], frame: pl.DataFrame, notes: tuple[str, ...]) -> Indexed:
    bad = frame.filter(pl.col("error").is_not_null()).select("slide", "error").rows()
    good = frame.filter(pl.col("error").is_null())
    summary = [f"{record['path']}: {frame.height} slides, {len(bad)} with an error"]
    if good.height:
        mpps = good["mpp"].to_list()
        size = sum(good["size_bytes"].to_list()) / 1e9
        summary.append(f"{min(mpps):.4g} to {max(mpps):.4g} um/px, {size:.2f} GB of slides")
    return Indexed(record, notes, tuple(bad), tuple(summary))
