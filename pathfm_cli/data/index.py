"""Slide files to a `slides` artifact: one row per slide, and a tile table beside it.

Only headers and tile tables are read (DESIGN, idea 3). A slide that cannot be used is a row with
`error`. Rows are sorted by slide id and hold no time stamps, so the same files give the same
artifact; its id follows (uri, size, etag) of every file.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts, cluster, disk, errors
from pathfm_cli.data import headers
from pathfm_cli.data import journal as journals
from pathfm_cli.data import plan as planning
from pathfm_cli.wsi import pyramid, rendered, store, tiles

CHUNK = 64
"""Slides between two entries of the journal."""
REMOTE_WORKERS = 48
"""Remote slides that are read at once unless told otherwise: nearly all of it is waiting."""

TOGETHER = 16
"""Slides that go to a worker of a cluster together, at most."""

_Read = tuple[headers.Row, tuple[headers.Plane, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Indexed:
    """The finished artifact.

    Attributes:
        record: its handle.
        notes: sentences for the user.
        failures: (slide, error) of the slides that cannot be used.
        summary: lines for a terminal.
    """

    record: dict[str, Any]
    notes: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    summary: tuple[str, ...]

    @property
    def hint(self) -> str:
        """What to do about the failures, if anything."""
        lacking = [slide for slide, error in self.failures if "no trustworthy mpp" in error]
        return f"--mpp-override {lacking[0]}=0.25 names its mpp" if lacking else ""


def index(
    arguments: Sequence[str],
    out: Path,
    table: Path | None = None,
    mpp_overrides: Sequence[str] = (),
    root: Path | None = None,
    *,
    overwrite: bool = False,
    manifest: Path | None = None,
    workers: int = 0,
    max_failed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Index slides; the arguments are those of `plan.prepare` and `run`, and so are the errors."""
    plan = planning.prepare(
        arguments, out, table, mpp_overrides, root, overwrite=overwrite, manifest=manifest
    )
    return run(plan, workers=workers, max_failed=max_failed, progress=progress)


def run(
    plan: planning.Plan,
    *,
    workers: int = 0,
    max_failed: int | None = None,
    spread: cluster.Cluster | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Read the slides of a plan and write the artifact.

    Args:
        plan: see `plan.prepare`.
        workers: threads; 0 means one per core, or `REMOTE_WORKERS` where slides are remote.
        max_failed: give up when more slides than this fail.
        spread: a cluster whose workers read, instead of threads.
        progress: told (done, total).

    Raises:
        errors.TooManyFailures: more than `max_failed` slides failed.
        errors.PathfmError: the cluster cannot be had, or is gone.
    """
    if plan.record is not None:
        notes = (*plan.notes, f"{plan.out} is up to date")
        return _indexed(plan.record, artifacts.read_table(plan.out).frame, notes)
    rows, writer = _assemble(plan, _read_rest(plan, workers, max_failed, spread, progress))
    frame = _frame(rows, plan.extras)
    beside = plan.out.parent / plan.header.files["tiles"]
    with disk.atomic(beside) as temporary, temporary.open("wb") as file:
        writer.write(file, plan.header.id)
    record = artifacts.write_table(plan.out, frame, plan.header)
    plan.journal.discard()
    notes = plan.notes
    if plan.replaced and plan.replaced.path != beside:
        notes += (f"kept {plan.replaced.path}: artifacts made from the old index may need it",)
    return _indexed(record, frame, notes + _through_openslide(frame))


def _through_openslide(frame: pl.DataFrame) -> tuple[str, ...]:
    brands = frame.filter(pl.col("error").is_null())["vendor"].drop_nulls()
    names = brands.filter(brands.str.starts_with("openslide:")).unique().sort().to_list()
    if not names:
        return ()
    count = brands.str.starts_with("openslide:").sum()
    return (f"{count} slides are read through openslide ({', '.join(names)}): local only, slower",)


def _read_rest(
    plan: planning.Plan,
    workers: int,
    max_failed: int | None,
    spread: cluster.Cluster | None,
    progress: Callable[[int, int], None],
) -> dict[str, _Read | planning.Kept]:
    """Read what is not known yet; all but the last chunk goes into the journal on the way."""
    files = [file for file in plan.files if file.uri not in plan.kept]
    done: dict[str, _Read | planning.Kept] = {}
    chunk: list[_Read] = []
    failed = 0
    for number, (row, planes) in enumerate(_read_all(files, plan, workers, spread), 1):
        chunk.append((row, planes))
        done[rendered.plain(row["uri"])] = row, planes
        failed += row["error"] is not None
        if max_failed is not None and failed > max_failed:
            raise errors.TooManyFailures(
                f"{failed} of the slides so far failed, --max-failed is {max_failed}; the last is "
                f"{row['slide']}: {row['error']}.",
                "a larger --max-failed, or none, makes them rows with an error",
            )
        progress(number, len(files))
        if len(chunk) == CHUNK and number < len(files):
            done |= _keep(chunk, plan.journal)
            chunk = []
    return done


def _read_all(
    files: Sequence[headers.File],
    plan: planning.Plan,
    workers: int,
    spread: cluster.Cluster | None,
) -> Iterator[_Read]:
    """Rows in the order of `files`, read by a cluster, or threads that stay a few slides ahead."""
    if spread is not None:
        work = functools.partial(headers.read, overrides=dict(plan.overrides))
        together = spread.share(len(files), TOGETHER)
        yield from spread.map(work, files, headers.lost, together)
        return
    remote = any(store.is_remote(file.uri) for file in files)
    count = workers or (REMOTE_WORKERS if remote else os.cpu_count() or 1)
    with futures.ThreadPoolExecutor(count) as pool:
        waiting: collections.deque[futures.Future[_Read]] = collections.deque()
        try:
            for file in files:
                waiting.append(pool.submit(headers.read, file, plan.overrides))
                if len(waiting) > 4 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _keep(chunk: Sequence[_Read], journal: journals.Journal) -> dict[str, planning.Kept]:
    """Write a chunk to the journal; what it returns holds no tiles in memory."""
    writer = tiles.Writer()
    for row, planes in chunk:
        _place(row, planes, writer)
    rows = [row for row, _ in chunk]
    table = journal.write(rows, writer)
    return {rendered.plain(row["uri"]): (row, table) for row in rows}


def _assemble(
    plan: planning.Plan, fresh: Mapping[str, _Read | planning.Kept]
) -> tuple[list[headers.Row], tiles.Writer]:
    """All rows in the order of the plan, and their tiles."""
    writer = tiles.Writer()
    rows = []
    for file in plan.files:
        row, where = plan.kept.get(file.uri) or fresh[file.uri]
        row = dict(row)
        _place(row, where, writer)
        rows.append(row)
    return rows, writer


def _place(
    row: headers.Row,
    where: Sequence[headers.Plane] | tiles.TileTable,
    writer: tiles.Writer,
) -> None:
    """Put the tiles of a slide, from memory or another table, into the table and its row."""
    if isinstance(where, tiles.TileTable):
        if row["levels"]:
            slide = pyramid.Slide.from_row(row)
            if not all(where.holds(level.place) for level in slide.levels):
                raise errors.InputError(
                    f"{where.path} lacks tiles of {slide.slide}.", "pathfm index ... --overwrite"
                )
            row["levels"] = [
                {**fields, **dataclasses.asdict(writer.copy(where, level.place))}
                for fields, level in zip(row["levels"], slide.levels, strict=True)
            ]
    elif where:
        places = [writer.add(level.offsets, level.counts, level.plane.prefix) for level in where]
        row["levels"] = headers.levels(where, [dataclasses.asdict(place) for place in places])


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
