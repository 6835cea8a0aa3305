"""A mask becomes polygons: outlines along pixel edges, cleaned by area, in level-0 pixels."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy import typing as npt
from shapely import geometry

from pathfm_cli import errors

MAX_TOLERANCE_UM = 200.0
"""A patch of 256 px at 0.5 um/px is 128 um wide; more would move whole patches off the tissue."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cleaning:
    """What of a mask is kept."""

    min_object_um2: float = 20_000.0
    """Smaller pieces of tissue are dropped; 20,000 um2 is a disc of 160 um."""
    min_hole_um2: float = 10_000.0
    """Smaller holes are filled; 10,000 um2 is a disc of 113 um, a fat cell or a vessel."""
    tolerance_um: float = 8.0
    """The outline may be moved by so much to save corners; one pixel of the default mask."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise errors.UsageError(
                    f"{field.name} is {value}; it is a number from 0 on.", "0 keeps everything"
                )
        if self.tolerance_um > MAX_TOLERANCE_UM:
            raise errors.UsageError(
                f"tolerance_um is {self.tolerance_um:g}; outlines may move by"
                f" {MAX_TOLERANCE_UM:g} um at most.",
                "--tolerance 8",
            )


def from_mask(
    mask: npt.NDArray[np.bool_], scale_px0: tuple[float, float], mpp0: float, cleaning: Cleaning
) -> geometry.MultiPolygon:
    """Outline a mask.

    Args:
        mask: (H, W) bool.
        scale_px0: level-0 pixels per mask pixel, along x and y.
        mpp0: um per level-0 pixel.
        cleaning: areas and tolerance.

    Returns:
        A valid multipolygon in level-0 pixels, empty if nothing is left.
    """
    faces = shapely.transform(trace(mask), lambda xy: xy * np.asarray(scale_px0))
    filled = _fill_holes(faces, cleaning.min_hole_um2 / mpp0**2)
    kept = filled[shapely.area(filled) >= cleaning.min_object_um2 / mpp0**2]
    simple = shapely.simplify(kept, cleaning.tolerance_um / mpp0)
    return multipolygon(shapely.union_all(simple))


def trace(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """Exact outlines of the true pixels of `mask`.

    Pixels that touch at a corner only belong to different polygons.

    Args:
        mask: (H, W) bool; pixel (row, column) covers x from column to column + 1, y from row.

    Returns:
        Array of shapely polygons in mask pixels, with holes, interiors disjoint.
    """
    padded = np.pad(mask, 1)
    lines = [*_edges(padded, horizontal=True), *_edges(padded, horizontal=False)]
    if not lines:
        return np.empty(0, dtype=object)
    faces = np.asarray(shapely.get_parts(shapely.polygonize(lines)), dtype=object)
    inside = shapely.get_coordinates(shapely.point_on_surface(faces)).astype(np.int64)
    kept: npt.NDArray[np.object_] = faces[mask[inside[:, 1], inside[:, 0]]]
    return kept


def area_mm2(tissue: geometry.MultiPolygon, mpp0: float) -> float:
    """Area of a geometry in level-0 pixels, in mm2."""
    return float(tissue.area) * mpp0**2 / 1e6


def geoparquet(bounds_px0: Sequence[float] | None) -> str:
    """GeoParquet 1.1 metadata of a table whose column `geometry` holds WKB multipolygons.

    Args:
        bounds_px0: (x min, y min, x max, y max) over all rows; None if all are empty.

    Returns:
        JSON for the metadata key `geo`. The `crs` is null, that is, none: the coordinates are
        pixels of the slide's level 0 with y downwards, not places on the earth.
    """
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["MultiPolygon"],
        "crs": None,
        "edges": "planar",
    }
    if bounds_px0 is not None:
        column["bbox"] = [float(value) for value in bounds_px0]
    return json.dumps(
        {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    )


def _edges(padded: npt.NDArray[np.bool_], *, horizontal: bool) -> list[geometry.LineString]:
    """Straight runs of the border between true and false, split wherever two borders may meet."""
    grid = padded if horizontal else padded.T
    border = grid[1:] != grid[:-1]
    upper = grid[1:]
    changes = border[:, 1:] & (~border[:, :-1] | (upper[:, 1:] != upper[:, :-1]))
    starts = np.pad(changes, ((0, 0), (1, 0)))
    ends = np.pad(border[:, :-1] & (~border[:, 1:] | changes), ((0, 0), (0, 1)))
    row, first = np.nonzero(starts)
    _, last = np.nonzero(ends)
    points = np.empty((len(row), 2, 2))
    points[:, 0, 0], points[:, 1, 0], points[..., 1] = first - 1, last, row[:, None]
    return list(shapely.linestrings(points if horizontal else points[..., ::-1]))


def _fill_holes(faces: npt.NDArray[np.object_], min_hole_px0: float) -> npt.NDArray[np.object_]:
    """The polygons without their holes below an area in px0^2."""
    rings, owner = shapely.get_rings(faces, return_index=True)
    exterior = np.diff(owner, prepend=-1) > 0
    kept = exterior | (shapely.area(shapely.polygons(rings)) >= min_hole_px0)
    filled: npt.NDArray[np.object_] = shapely.polygons(rings[kept], indices=owner[kept])
    return filled


def multipolygon(shape: shapely.Geometry) -> geometry.MultiPolygon:
    """The polygons of any geometry as one valid multipolygon; points and lines are dropped."""
    if not shape.is_valid:
        shape = shapely.make_valid(shape, method="structure")
    parts = shapely.get_parts(shape)
    return geometry.MultiPolygon([p for p in parts if p.geom_type == "Polygon" and not p.is_empty])
