"""Slides to a `tissue` artifact: foreground polygons from a thumbnail (paper, section IV-B)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np
import polars as pl
import shapely
from numpy import typing as npt

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, otsu, polygons
from pathfm_cli.wsi import pyramid

Method = Callable[[npt.NDArray[np.uint8], float], npt.NDArray[np.bool_]]
"""Thumbnail (H, W, 3) uint8 and its mpp to a mask (H, W) bool."""

METHODS: Mapping[str, Method] = {"otsu": otsu.foreground}
"""The ways to find tissue, by the name that `--method` takes."""

MAX_THUMBNAIL_PX = 64_000_000
CHUNK = 16
"""Slides whose rows are kept together for a rerun."""

_SCHEMA = {
    "geometry": pl.Binary,
    "tissue_area_mm2": pl.Float64,
    "tissue_method": pl.String,
    "mask_error": pl.String,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MaskConfig:
    """How tissue is found."""

    mpp: float = 8.0
    """Resolution of the thumbnail, um/px."""
    method: str = "otsu"
    """A name in `METHODS`."""
    cleaning: polygons.Cleaning = dataclasses.field(default_factory=polygons.Cleaning)
    """Areas below which pieces and holes are dropped, and the outline's tolerance."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.mpp <= 64:
            raise errors.UsageError(
                f"mpp {self.mpp:g} is no thumbnail: between 0.5 and 64 um/px.", "--mpp 8"
            )
        if self.method not in METHODS:
            raise errors.UsageError(
                f"There is no method {self.method} to find tissue.",
                f"--method {' or '.join(METHODS)}",
            )


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
    config: MaskConfig | None = None,
    workers: int = 0,
    max_failed: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Masked:
    """Find the tissue of every slide and write it as GeoParquet 1.1.

    Rows that carry an error are carried through. A slide without tissue has an empty geometry and
    the area 0.

    Args:
        slides: a `slides` artifact.
        out: the Parquet file to write.
        config: how tissue is found.
        workers: threads; 0 means one per core.
        max_failed: give up when more slides than this fail.
        overwrite: replace a result made with other inputs or settings.
        progress: told (done, total).

    Raises:
        errors.InputError: `slides` is no `slides` artifact.
        errors.OutputClash: `out` holds something else.
        errors.TooManyFailures: more than `max_failed` slides failed.
    """
    config = config or MaskConfig()
    opened, header = _open(slides, out, config)
    table = opened.table
    if record := artifacts.finished(out, header, overwrite=overwrite):
        frame = artifacts.read_table(out, "tissue").frame
        return _masked(record, table.frame, frame, (f"{out} is up to date",))
    parts = artifacts.Parts(out, header)
    for number, chunk in _chunks(opened, config, parts.done(), workers, max_failed, progress):
        parts.write(number, chunk)
    frame = _assemble(table.frame, parts)
    bounds = shapely.total_bounds(shapely.from_wkb(frame["geometry"].to_list()))
    geo = polygons.geoparquet(None if np.isnan(bounds).any() else bounds.tolist())
    record = artifacts.write_table(out, frame, header, extra={"geo": geo})
    parts.discard()
    return _masked(record, table.frame, frame, ())


def config(
    mpp: float, method: str, min_object_um2: float, min_hole_um2: float, tolerance_um: float
) -> MaskConfig:
    """Settings from plain values.

    Raises:
        errors.UsageError: one is out of range, or there is no such method.
    """
    cleaning = polygons.Cleaning(
        min_object_um2=min_object_um2, min_hole_um2=min_hole_um2, tolerance_um=tolerance_um
    )
    return MaskConfig(mpp=mpp, method=method, cleaning=cleaning)


def check(out: str | os.PathLike[str], config: MaskConfig, *, overwrite: bool = False) -> None:
    """Refuse an output that is surely something else, before any input is looked at.

    Raises:
        errors.OutputClash: as `artifacts.refuse`.
    """
    artifacts.refuse(out, "tissue", dataclasses.asdict(config), overwrite=overwrite)


def plan(
    slides: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: MaskConfig,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """What `mask` would do; reads no slide.

    Raises:
        errors.InputError, errors.OutputClash: as `mask`.
    """
    opened, header = _open(slides, out, config)
    finished = artifacts.finished(out, header, overwrite=overwrite) is not None
    total, usable = opened.table.frame.height, len(opened.slides)
    begun = min(len(artifacts.Parts(out, header).done()) * CHUNK, total)
    return {
        "slides": total,
        "with_errors_from_index": total - usable,
        "already_done": total if finished else begun,
        "writes": os.path.abspath(out),
    }


def outline(slide: pyramid.Slide, reader: pyramid.Reader, config: MaskConfig) -> dict[str, Any]:
    """Find the tissue of one slide: the columns that `tissue` has beyond `slides`."""
    try:
        if slide.width_px0 * slide.height_px0 * (slide.mpp / config.mpp) ** 2 > MAX_THUMBNAIL_PX:
            raise errors.SlideError(
                f"{slide.slide}: a thumbnail at {config.mpp:g} um/px has more than"
                f" {MAX_THUMBNAIL_PX / 1e6:.0f} million pixels; use a coarser --mpp"
            )
        thumbnail = reader.read_thumbnail(slide, config.mpp)
    except errors.SlideError as error:
        return dict.fromkeys(_SCHEMA) | {"mask_error": str(error)}
    height, width = thumbnail.shape[:2]
    scale_px0 = (slide.width_px0 / width, slide.height_px0 / height)
    found = METHODS[config.method](thumbnail, config.mpp)
    tissue = polygons.from_mask(found, scale_px0, slide.mpp, config.cleaning)
    return {
        "geometry": shapely.to_wkb(tissue),
        "tissue_area_mm2": polygons.area_mm2(tissue, slide.mpp),
        "tissue_method": config.method,
        "mask_error": None,
    }


def _open(
    slides: str | os.PathLike[str], out: str | os.PathLike[str], config: MaskConfig
) -> tuple[cohort.Cohort, artifacts.Header]:
    cohort.require_usable(artifacts.read_header(slides, "slides"), slides)
    opened = cohort.open_cohort(slides)
    header = artifacts.Header(
        kind="tissue",
        parents=(f"slides:{opened.table.header.id}",),
        settings=dataclasses.asdict(config),
        files=cohort.companions(opened.table, out),
    )
    return opened, header


def _chunks(
    opened: cohort.Cohort,
    config: MaskConfig,
    done: set[int],
    workers: int,
    max_failed: int | None,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Chunks of rows that are not done yet, in row order; the pool works ahead."""
    total = opened.table.frame.height
    usable = {slide.slide: slide for slide in opened.slides}
    ids = opened.table.frame["slide"].to_list()
    starts = [start for start in range(0, total, CHUNK) if start // CHUNK not in done]
    failed = 0
    with futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            rows = pool.map(
                lambda name: _row(usable.get(name), opened.reader, config),
                [name for start in starts for name in ids[start : start + CHUNK]],
            )
            for start in starts:
                chunk = []
                for number in range(start, min(start + CHUNK, total)):
                    chunk.append(next(rows))
                    failed += chunk[-1]["mask_error"] is not None
                    if max_failed is not None and failed > max_failed:
                        raise errors.TooManyFailures(
                            f"{failed} slides failed, more than --max-failed {max_failed}; the"
                            f" last is {chunk[-1]['mask_error']}.",
                            "finished slides are kept: a larger --max-failed goes on from there",
                        )
                    progress(number + 1, total)
                yield start // CHUNK, pl.DataFrame(chunk, schema=_SCHEMA)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _row(slide: pyramid.Slide | None, reader: pyramid.Reader, config: MaskConfig) -> dict[str, Any]:
    return outline(slide, reader, config) if slide else dict.fromkeys(_SCHEMA)


def _assemble(slides: pl.DataFrame, parts: artifacts.Parts) -> pl.DataFrame:
    found = parts.scan().collect() if slides.height else pl.DataFrame(schema=_SCHEMA)
    joined = slides.hstack(found)
    return joined.with_columns(error=pl.coalesce("error", "mask_error")).drop("mask_error")


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
