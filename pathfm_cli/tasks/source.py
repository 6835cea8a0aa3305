"""What `embed` reads: rows in the order of the result, and the pixels of each."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, draw
from pathfm_cli.data import grid as grids
from pathfm_cli.wsi import batch

Image = npt.NDArray[np.uint8]
FACTS = ("label", "split", "group", "slide")
"""Columns of the result that say what an image is; any column of the input can fill one."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which input column fills a column of the result; None means the one of the same name."""

    label: str | None = None
    split: str | None = None
    group: str | None = None
    slide: str | None = None

    def pick(self, available: Sequence[str], where: str | Path) -> dict[str, str]:
        """Result column to input column, for those that there are.

        Raises:
            errors.UsageError: a column was named that `where` does not have.
        """
        chosen = {}
        for name in FACTS:
            column = getattr(self, name)
            if column is not None and column not in available:
                close = difflib.get_close_matches(column, available, n=1, cutoff=0.5)
                hint = f"--{name} {close[0]}" if close else f"it has: {', '.join(available)}"
                raise errors.UsageError(f"{where} has no column {column!r} for --{name}.", hint)
            if column is not None or name in available:
                chosen[name] = column or name
        return chosen


SAME = Columns()


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """The cells to embed of a `tissue` artifact; a stride of None is the size of a patch."""

    config: draw.SampleConfig
    stride_px: int | None = None
    to_edge: bool = False
    """As for `grid.cells`."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Images to embed.

    Attributes:
        rows: one row an image: `id`, those of `FACTS` that are known, for patches also `x_px0`,
            `y_px0`, `mpp`.
        read: pixels of row i as (H, W, 3) uint8; raises `errors.SlideError` where they cannot be
            had. Called from several threads.
        parent: what the ids of results follow.
        settings: what the result records of the source.
        what: images or patches, for messages.
        notes: sentences for the user.
        table: the artifact that knows the slides, for patches.
        remote: whether pixels come over a network, so that more threads should wait for them.
    """

    rows: pl.DataFrame
    read: Callable[[int], Image]
    parent: str
    settings: Mapping[str, Any]
    what: str
    notes: tuple[str, ...] = ()
    table: artifacts.Table | None = None
    remote: bool = False
    ranges: Callable[[int], Sequence[tuple[int, int]]] | None = None
    """Of row i, (offset, bytes) of the tiles under it, where that is known; reads nothing."""


def classes(rows: pl.DataFrame) -> list[str]:
    """Names of the labels, sorted: the order of the classes wherever they are numbered."""
    return rows["label"].drop_nulls().unique().sort().to_list() if "label" in rows.columns else []


def patches(path: str | Path, columns: Columns = SAME) -> Source:
    """The patches of a `patches` artifact, in its order.

    Args:
        path: the artifact.
        columns: which columns of the slides say what a patch is.

    Raises:
        errors.InputError: it cannot be read, is empty, or names slides it does not carry.
        errors.UsageError: a named column does not exist.
    """
    opened = cohort.open_cohort(path)
    table = opened.table
    return _places(opened, table.frame, f"patches:{table.header.id}", columns, {}, ())


def tissue(path: str | Path, grid: Grid, columns: Columns = SAME) -> Source:
    """The grid over the tissue of a `tissue` artifact: by slide, mpp, y and x.

    Args:
        path: the artifact.
        grid: its cells.
        columns: as in `patches`.

    Raises:
        errors.InputError: as `patches`, or no cell has enough tissue.
        errors.UsageError: a named column does not exist, or no patch fits.
    """
    opened = cohort.open_cohort(path)
    table, config = opened.table, grid.config
    usable = table.frame.filter(pl.col("error").is_null())
    draw.check_feasible(usable, config)
    frame = grids.cells(usable, config, grid.stride_px, to_edge=grid.to_edge)
    settings = {
        "grid": {
            "mpp": list(config.mpp),
            "min_tissue": config.min_tissue,
            "stride_px": grid.stride_px or config.size_px,
            **({"to_edge": True} if grid.to_edge else {}),
        }
    }
    carried = table.frame.height - usable.height
    without = usable.height - frame["slide"].n_unique()
    notes = [f"{carried} slides carry errors and are left out"] if carried else []
    notes += [f"{without} slides have no cell with enough tissue"] if without else []
    parent = f"tissue:{table.header.id}"
    return _places(opened, frame, parent, columns, settings, tuple(notes))


def _places(
    opened: cohort.Cohort,
    frame: pl.DataFrame,
    parent: str,
    columns: Columns,
    settings: Mapping[str, Any],
    notes: tuple[str, ...],
) -> Source:
    path = opened.table.path
    if frame.is_empty():
        raise errors.InputError(
            f"{path} has no patches.", "pathfm sample t.parquet --n 1000 -o p.parquet"
        )
    facts = _facts(cohort.slide_rows(opened.table), columns, path)
    rows = frame.join(facts, on="slide", how="left", maintain_order="left").select(
        _place_ids(), *facts.columns, "x_px0", "y_px0", "mpp"
    )
    sizes = frame["size_px"].unique().sort().to_list()
    chosen = {name: column for name in FACTS if (column := getattr(columns, name))}
    return Source(
        rows=rows,
        read=_reader(opened, frame),
        parent=parent,
        settings={
            **settings,
            "size_px": sizes[0] if len(sizes) == 1 else sizes,
            "columns": chosen,
            "classes": classes(rows),
        },
        what="patches",
        notes=notes,
        table=opened.table,
        remote=opened.remote,
        ranges=_ranges(opened, frame),
    )


def _facts(slides: pl.DataFrame, columns: Columns, path: Path) -> pl.DataFrame:
    """One row a slide: `label`, `split`, `group` as text where known, and `slide`."""
    if columns.slide is not None:
        raise errors.UsageError(f"{path} names its slides itself.", "leave out --slide")
    chosen = columns.pick(slides.columns, path)
    return slides.select(
        *(pl.col(chosen[name]).cast(pl.String).alias(name) for name in FACTS if name in chosen)
    )


def _place_ids() -> pl.Expr:
    """`slide@mpp:x,y`; a place that was drawn again gets `#2` and so on."""
    x, y, mpp = (
        pl.col(name).cast(pl.String).str.strip_suffix(".0") for name in ("x_px0", "y_px0", "mpp")
    )
    place = pl.format("{}@{}:{},{}", "slide", mpp, x, y)
    count = pl.int_range(1, pl.len() + 1).over("slide", "mpp", "x_px0", "y_px0", "size_px")
    return pl.when(count == 1).then(place).otherwise(pl.format("{}#{}", place, count)).alias("id")


def _reader(opened: cohort.Cohort, frame: pl.DataFrame) -> Callable[[int], Image]:
    request = _requests(opened, frame)

    def read(row: int) -> Image:
        one = request(row)
        return opened.reader.read_patch(one.slide, one.x_px0, one.y_px0, one.mpp, one.size_px)

    return read


def _ranges(
    opened: cohort.Cohort, frame: pl.DataFrame
) -> Callable[[int], Sequence[tuple[int, int]]]:
    request = _requests(opened, frame)
    return lambda row: opened.reader.ranges(request(row))


def _requests(opened: cohort.Cohort, frame: pl.DataFrame) -> Callable[[int], batch.Request]:
    slides = opened.slides
    positions = pl.DataFrame({"slide": [slide.slide for slide in slides]}).with_row_index("at")
    numbered = frame.join(positions, on="slide", how="left", maintain_order="left")
    if numbered["at"].null_count():
        lost = numbered.filter(pl.col("at").is_null())["slide"][0]
        raise errors.InputError(f"{opened.table.path} does not carry the slide {lost}.")
    at, size_px = numbered["at"].to_numpy(), numbered["size_px"].to_numpy()
    x_px0, y_px0, mpp = (numbered[name].to_numpy() for name in ("x_px0", "y_px0", "mpp"))

    def request(row: int) -> batch.Request:
        return batch.Request(
            slides[at[row]],
            float(x_px0[row]),
            float(y_px0[row]),
            float(mpp[row]),
            int(size_px[row]),
        )

    return request
