"""Slide files to a `slides` artifact: one row per slide, and a tile table beside it.

Only headers and tile tables are read (DESIGN, idea 3). A slide that cannot be used is a row with
`error`. Rows are sorted by slide id and hold no time stamps, so the same files give the same
artifact; its id follows (uri, size, etag) of every file.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.data import headers
from pathfm_cli.data import plan as planning
from pathfm_cli.wsi import pyramid, tiles

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
    workers: int = 0,
    max_failed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Index slides; the arguments are those of `plan.prepare` and `run`, and so are the errors."""
    plan = planning.prepare(arguments, out, table, mpp_overrides, root, overwrite=overwrite)
    return run(plan, workers=workers, max_failed=max_failed, progress=progress)


def run(
    plan: planning.Plan,
    *,
    workers: int = 0,
    max_failed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Read the slides of a plan and write the artifact.

    Args:
        plan: see `plan.prepare`.
        workers: threads; 0 means one per core.
        max_failed: give up when more slides than this fail.
        progress: told (done, total).

    Raises:
        errors.TooManyFailures: more than `max_failed` slides failed.
    """
    if plan.record is not None:
        notes = (*plan.notes, f"{plan.out} is up to date")
        return _indexed(plan.record, artifacts.read_table(plan.out).frame, notes)
    writer = tiles.Writer()
    rows: list[headers.Row] = []
    failed = 0
    for row, planes in _read_all(plan, workers):
        _place(row, planes, writer, plan.old_tiles)
        rows.append(row)
        failed += row["error"] is not None
        if max_failed is not None and failed > max_failed:
            raise errors.TooManyFailures(
                f"{failed} of the slides so far failed, --max-failed is {max_failed}; the last is "
                f"{row['slide']}: {row['error']}.",
                "a larger --max-failed, or none, makes them rows with an error",
            )
        progress(len(rows), len(plan.files))
    frame = _frame(rows, plan.extras)
    beside = plan.out.parent / plan.header.files["tiles"]
    with artifacts.atomic(beside) as temporary, temporary.open("wb") as file:
        writer.write(file, plan.header.id)
    record = artifacts.write_table(plan.out, frame, plan.header)
    notes = plan.notes
    if plan.old_tiles:
        notes += (f"kept {plan.old_tiles.path}: artifacts made from the old index may need it",)
    return _indexed(record, frame, notes)


def _read_all(plan: planning.Plan, workers: int) -> Iterator[_Read]:
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


def _read(file: headers.File, plan: planning.Plan) -> _Read:
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
        if not all(old.holds(level.place) for level in slide.levels):
            raise errors.InputError(
                f"{old.path} lacks tiles of {slide.slide}.", "pathfm index ... --overwrite"
            )
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
