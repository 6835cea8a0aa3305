"""Grids over tissue: all patches of a slide with enough of it (paper, section IV-B, last words)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import shapely
from numpy import typing as npt

from pathfm_cli.data import draw, overlap

MAX_CELLS = 100_000
"""Cells looked at together."""

SCHEMA = {
    "slide": pl.String,
    "x_px0": pl.Float64,
    "y_px0": pl.Float64,
    "mpp": pl.Float64,
    "size_px": pl.Int64,
    "tissue_fraction": pl.Float64,
}
"""Columns of a `patches` table."""


def cells(
    slides: pl.DataFrame,
    config: draw.SampleConfig,
    stride_px: int | None = None,
    *,
    to_edge: bool = False,
) -> pl.DataFrame:
    """All cells with enough tissue: cell (i, j) starts at i, j times the stride from (0, 0).

    A cell lies inside the slide with all of its area.

    Args:
        slides: rows of a `tissue` table without `error`.
        config: mpp, size and least tissue.
        stride_px: distance of neighbours in pixels at their mpp; None means the size.
        to_edge: also a last row and column, moved inside so that less than a pixel stays
            uncovered at the right and lower edge of the slide.

    Returns:
        The columns of a `patches` table, by slide, mpp, y and x.
    """
    stride_px = config.size_px if stride_px is None else stride_px
    reasons = draw.feasibility(slides, config)
    frames = [pl.DataFrame(schema=SCHEMA)]
    for row, slide in enumerate(slides.iter_rows(named=True)):
        if reasons[row].all():
            continue
        tissue = shapely.from_wkb(slide["geometry"])
        share = overlap.Overlap(tissue)
        for column, mpp in enumerate(config.mpp):
            if not reasons[row, column]:
                frames.append(
                    _on_slide(slide, tissue.bounds, share, mpp, config, stride_px, to_edge)
                )
    return pl.concat(frames)


def most(slides: pl.DataFrame, config: draw.SampleConfig, stride_px: int) -> int:
    """Cells of the grid on and off tissue; arguments as `cells`."""
    count = 0
    for width, height, mpp0 in slides.select("width_px0", "height_px0", "mpp").iter_rows():
        for mpp in config.mpp:
            step = draw.extent_px0(stride_px, mpp, mpp0)
            count += math.ceil(width / step) * math.ceil(height / step)
    return count


def _on_slide(
    slide: dict[str, Any],
    bounds: tuple[float, float, float, float],
    share: overlap.Overlap,
    mpp: float,
    config: draw.SampleConfig,
    stride_px: int,
    to_edge: bool,
) -> pl.DataFrame:
    extent = draw.extent_px0(config.size_px, mpp, slide["mpp"])
    step = draw.extent_px0(stride_px, mpp, slide["mpp"])
    left, top, right, bottom = bounds
    width, height = slide["width_px0"], slide["height_px0"]
    x_px0 = _starts(left, right, width, extent, step)
    y_px0 = _starts(top, bottom, height, extent, step)
    if to_edge:
        scale = extent / config.size_px
        x_last, y_last = (pixels(side, scale) - config.size_px for side in (width, height))
        x_px0 = _with_last(x_px0, right, x_last, stride_px, scale)
        y_px0 = _with_last(y_px0, bottom, y_last, stride_px, scale)
    rows = max(1, MAX_CELLS // max(1, len(x_px0)))
    found = [
        _enough(share, x_px0, y_px0[begin : begin + rows], extent, config.min_tissue)
        for begin in range(0, len(y_px0), rows)
    ]
    values = np.concatenate(found) if found else np.empty((0, 3))
    return pl.DataFrame(
        {
            "slide": pl.repeat(slide["slide"], len(values), dtype=pl.String, eager=True),
            "x_px0": values[:, 0],
            "y_px0": values[:, 1],
            "mpp": pl.repeat(mpp, len(values), dtype=pl.Float64, eager=True),
            "size_px": pl.repeat(config.size_px, len(values), dtype=pl.Int64, eager=True),
            "tissue_fraction": values[:, 2],
        }
    )


def _starts(
    low: float, high: float, size_px0: int, extent: float, step: float
) -> npt.NDArray[np.float64]:
    """Grid lines along one axis whose cells touch [low, high] and end inside the slide."""
    first = max(0, int(np.floor((low - extent) / step)) + 1)
    room = size_px0 - extent + draw.OVERHANG_PX0
    last = min(int(np.floor(room / step)), int(np.ceil(high / step)) - 1)
    return np.arange(first, last + 1).astype(np.float64) * step


def pixels(length_px0: float, scale: float) -> int:
    """Whole pixels, each `scale` level-0 pixels wide, that fit in a side of a slide."""
    return math.floor((length_px0 + draw.OVERHANG_PX0) / scale)


def middle(start_px: int, last_px: int, size_px: int, stride_px: int) -> tuple[int, int]:
    """Part of a cell, along one axis, that is nearer to its middle than to its neighbours'.

    Those of all cells of a grid `to_edge` tile the slide.

    >>> [middle(start, 30, 10, 8) for start in (0, 8, 24, 30)]
    [(0, 9), (1, 9), (1, 9), (3, 10)]

    Args:
        start_px: where the cell begins, in pixels.
        last_px: where the last cell that fits begins.
        size_px: side of a cell.
        stride_px: distance of neighbours, at most the size.

    Returns:
        First pixel, and the one behind the last, counted from the start of the cell.
    """
    margin = (size_px - stride_px) // 2
    # The last cell may lie nearer to the one before it than others do.
    behind = start_px - (start_px - 1) // stride_px * stride_px
    first = margin + stride_px - behind if start_px else 0
    return first, size_px if start_px == last_px else stride_px + margin


def _with_last(
    regular_px0: npt.NDArray[np.float64], high: float, last_px: int, stride_px: int, scale: float
) -> npt.NDArray[np.float64]:
    """The last line that fits, too, if tissue up to `high` goes on beyond the regular ones."""
    beyond = high > (last_px // stride_px + 1) * stride_px * scale
    if last_px <= 0 or last_px % stride_px == 0 or not beyond:
        return regular_px0
    return np.append(regular_px0, last_px * scale)


def _enough(
    share: overlap.Overlap,
    x_px0: npt.NDArray[np.float64],
    y_px0: npt.NDArray[np.float64],
    extent: float,
    min_tissue: float,
) -> npt.NDArray[np.float64]:
    """Rows (x, y, tissue share) of the cells with enough tissue; shares as `draw` rounds them."""
    y, x = (axis.ravel() for axis in np.meshgrid(y_px0, x_px0, indexing="ij"))
    found = share.fraction(x, y, extent).round(draw.SHARE_DIGITS)
    enough: npt.NDArray[np.float64] = np.stack([x, y, found], axis=1)[found >= min_tissue]
    return enough
