"""Slides to a `tissue` artifact: foreground polygons from a thumbnail (paper, section IV-B)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import polars as pl
import shapely

from pathfm_cli import artifacts, cluster, errors
from pathfm_cli.data import cohort, finders, headers, polygons
from pathfm_cli.wsi import pyramid

CHUNK = 16
"""Slides whose rows are kept together for a rerun."""

_SCHEMA = {
    "geometry": pl.Binary,
    "tissue_area_mm2": pl.Float64,
    "tissue_method": pl.String,
    "tissue_doubt": pl.Float64,
    "mask_error": pl.String,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Masked:
    """The finished artifact.

    Attributes:
        record: its handle.
        notes: sentences about what happened.
        failures: (slide, error) of the slides that failed here, not in `index`.
        summary: lines for a person.
    """

    record: dict[str, Any]
    notes: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    summary: tuple[str, ...]


def mask(
    slides: str | os.PathLike[str],
    out: str | os.PathLike[str],
    finder: finders.Finder | None = None,
    workers: int = 0,
    max_failed: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    spread: cluster.Cluster | None = None,
) -> Masked:
    """Find the tissue of every slide and write it as GeoParquet 1.1.

    Rows that carry an error are carried through. A slide without tissue has an empty geometry and
    the area 0.

    Args:
        slides: a `slides` artifact.
        out: the Parquet file to write.
        finder: how tissue is found; None means the network of the package.
        workers: threads; 0 means one per core.
        max_failed: give up when more slides than this fail.
        overwrite: replace a result made with other inputs or settings.
        progress: told (done, total).
        spread: a cluster whose workers look at the slides, instead of threads.

    Raises:
        errors.InputError: `slides` is no `slides` artifact.
        errors.OutputClash: `out` holds something else.
        errors.TooManyFailures: more than `max_failed` slides failed.
    """
    finder = finder or finders.UNet()
    opened, header = _open(slides, out, finder)
    table = opened.table
    if record := artifacts.finished(out, header, overwrite=overwrite):
        frame = artifacts.read_table(out, "tissue").frame
        return _masked(record, table.frame, frame, (f"{out} is up to date",))
    parts = artifacts.Parts(out, header)
    names = opened.table.frame["slide"].to_list()
    done = parts.done()
    todo = [n for n in range(-(-len(names) // CHUNK)) if n not in done]
    wanted = [name for n in todo for name in names[n * CHUNK : (n + 1) * CHUNK]]
    with _rows(opened, finder, wanted, workers, spread) as rows:
        for number, chunk in _chunks(rows, todo, len(names), max_failed, progress):
            parts.write(number, chunk)
    frame = _assemble(table.frame, parts)
    geo = polygons.geoparquet(_bounds(frame))
    record = artifacts.write_table(out, frame, header, extra={"geo": geo})
    parts.discard()
    return _masked(record, table.frame, frame, ())


def check(out: str | os.PathLike[str], finder: finders.Finder, *, overwrite: bool = False) -> None:
    """Refuse an output that is surely something else, before any input is looked at.

    Raises:
        errors.OutputClash: as `artifacts.refuse`.
    """
    artifacts.refuse(out, "tissue", _settings(finder), overwrite=overwrite)


def plan(
    slides: str | os.PathLike[str],
    out: str | os.PathLike[str],
    finder: finders.Finder,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """What `mask` would do; reads no slide.

    Raises:
        errors.InputError, errors.OutputClash: as `mask`.
    """
    opened, header = _open(slides, out, finder)
    finished = artifacts.finished(out, header, overwrite=overwrite) is not None
    total, usable = opened.table.frame.height, len(opened.slides)
    begun = min(len(artifacts.Parts(out, header).done()) * CHUNK, total)
    return {
        "slides": total,
        "with_errors_from_index": total - usable,
        "already_done": total if finished else begun,
        "writes": os.path.abspath(out),
    }


def slide_ids(slides: str | os.PathLike[str]) -> list[str]:
    """Ids of all slides of an artifact, in its order; reads no slide.

    Raises:
        errors.InputError: as `mask`.
    """
    cohort.require_usable(artifacts.read_header(slides, "slides"), slides)
    return artifacts.read_table(slides, "slides").frame["slide"].to_list()


def outline(slide: pyramid.Slide, reader: pyramid.Reader, finder: finders.Finder) -> dict[str, Any]:
    """Find the tissue of one slide: the columns that `tissue` has beyond `slides`."""
    try:
        found = finder.find(slide, reader)
    except errors.SlideError as error:
        return dict.fromkeys(_SCHEMA) | {"mask_error": str(error)}
    return {
        "geometry": shapely.to_wkb(found.tissue),
        "tissue_area_mm2": polygons.area_mm2(found.tissue, slide.mpp),
        "tissue_method": finder.method,
        "tissue_doubt": found.doubt_bits,
        "mask_error": None,
    }


def _settings(finder: finders.Finder) -> dict[str, Any]:
    return {"method": finder.method, **finder.key}


def _open(
    slides: str | os.PathLike[str], out: str | os.PathLike[str], finder: finders.Finder
) -> tuple[cohort.Cohort, artifacts.Header]:
    cohort.require_usable(artifacts.read_header(slides, "slides"), slides)
    opened = cohort.open_cohort(slides)
    header = artifacts.Header(
        kind="tissue",
        parents=(f"slides:{opened.table.header.id}",),
        settings=_settings(finder),
        files=cohort.companions(opened.table, out),
    )
    return opened, header


def _chunks(
    rows: Iterator[dict[str, Any]],
    numbers: Sequence[int],
    total: int,
    max_failed: int | None,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows of the chunks with these numbers, in their order."""
    failed = 0
    for number in numbers:
        chunk = []
        for place in range(number * CHUNK, min((number + 1) * CHUNK, total)):
            chunk.append(next(rows))
            failed += chunk[-1]["mask_error"] is not None
            if max_failed is not None and failed > max_failed:
                raise errors.TooManyFailures(
                    f"{failed} slides failed, more than --max-failed {max_failed}; the"
                    f" last is {chunk[-1]['mask_error']}.",
                    "finished slides are kept: a larger --max-failed goes on from there",
                )
            progress(place + 1, total)
        yield number, pl.DataFrame(chunk, schema=_SCHEMA)


@contextlib.contextmanager
def _rows(
    opened: cohort.Cohort,
    finder: finders.Finder,
    names: Sequence[str],
    workers: int,
    spread: cluster.Cluster | None,
) -> Iterator[Iterator[dict[str, Any]]]:
    """The rows of the slides with these names, in order; a pool, or a cluster, works ahead."""
    usable = {slide.slide: slide for slide in opened.slides}
    slides = [usable.get(name) for name in names]
    work = functools.partial(_row, reader=opened.reader, finder=finder)
    if spread is not None:
        yield spread.map(functools.partial(_apart, work, finder), slides, _lost)
        return
    with (
        finders.side_by_side(finder),
        futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool,
    ):
        try:
            yield pool.map(work, slides)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _apart(
    work: Callable[[pyramid.Slide | None], dict[str, Any]],
    finder: finders.Finder,
    slide: pyramid.Slide | None,
) -> dict[str, Any]:
    """As the pool does it, in a process that does other things as well."""
    with finders.side_by_side(finder):
        return work(slide)


def _lost(slide: pyramid.Slide | None) -> dict[str, Any]:
    name = "" if slide is None else slide.slide
    return dict.fromkeys(_SCHEMA) | {"mask_error": f"{name}: {headers.LOST}"}


def _row(
    slide: pyramid.Slide | None, reader: pyramid.Reader, finder: finders.Finder
) -> dict[str, Any]:
    return outline(slide, reader, finder) if slide else dict.fromkeys(_SCHEMA)


def _assemble(slides: pl.DataFrame, parts: artifacts.Parts) -> pl.DataFrame:
    found = parts.scan().collect() if slides.height else pl.DataFrame(schema=_SCHEMA)
    joined = slides.hstack(found)
    return joined.with_columns(error=pl.coalesce("error", "mask_error")).drop("mask_error")


def _bounds(frame: pl.DataFrame) -> list[float] | None:
    """(x min, y min, x max, y max) over all geometries, few at a time; None without any."""
    each = [np.full(4, np.nan)]
    for rows in frame.select("geometry").iter_slices(256):
        each.append(shapely.total_bounds(shapely.from_wkb(rows["geometry"].to_list())))
    low = np.fmin.reduce([bounds[:2] for bounds in each])
    high = np.fmax.reduce([bounds[2:] for bounds in each])
    return None if np.isnan(low).any() else [*low.tolist(), *high.tolist()]


def _masked(
    record: dict[str, Any], before: pl.DataFrame, after: pl.DataFrame, notes: tuple[str, ...]
) -> Masked:
    carried = before["error"].is_not_null().sum()
    bad = after.filter(before["error"].is_null() & after["error"].is_not_null())
    good = after.filter(pl.col("error").is_null())
    blank = good.filter(pl.col("tissue_area_mm2") == 0)["slide"]
    if carried:
        notes += (f"{carried} of {before.height} slides carry errors from index",)
    if len(blank):
        notes += (f"no tissue on {len(blank)} of {before.height} slides, such as {blank[0]}",)
    area = good["tissue_area_mm2"].sum()
    summary = (
        f"{record['path']}: {len(good) - len(blank)} of {before.height} slides with tissue",
        f"{area:.4g} mm2 of tissue",
    )
    return Masked(record, notes, tuple(bad.select("slide", "error").rows()), summary)
