"""How much of a square patch lies in tissue: exact, for many patches at once.

The area of a polygon within a rectangle is a line integral (Green's theorem): at each x, the tissue
between the rectangle's top and bottom is the signed sum of the edges' y, clamped to [top, bottom].
So that few edges count, the polygon is cut along the lines of a grid once per slide. Its part in
each row of the grid is a polygon of its own, closed by level pieces along the row's borders, and
the pieces of a row are sorted by column. A square then sums the pieces of the cells it touches.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy import typing as npt
from shapely import geometry

CELLS = 64
"""Rows, and columns, of the grid."""
MAX_PIECES = 1 << 15
"""Pieces that are computed at once, so that the arrays stay in the cache."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Overlap:
    """Tissue of one slide, prepared.

    Args:
        tissue: a valid multipolygon in level-0 pixels.
    """

    def __init__(self, tissue: geometry.MultiPolygon) -> None:
        bounds = np.nan_to_num(shapely.bounds(tissue))
        self._origin_px0 = bounds[:2]
        self._cell_px0 = np.maximum(bounds[2:] - bounds[:2], 1.0) / CELLS
        points, row, sign = self._rows(*_edges(tissue))
        points, column, owner = self._cut(points, axis=0)
        # A piece that only touches its cell, at a border that it ends on, has no width.
        wide = points[:, 0, 0] < points[:, 1, 0]
        points, column, owner = points[wide], column[wide], owner[wide]
        # A piece: its left and right end, its height at the left end, its slope, its sign.
        (left, height), (right, end) = points[:, 0].T, points[:, 1].T
        slope = (end - height) / (right - left)
        cell = row[owner] * CELLS + column
        order = np.argsort(cell, kind="stable")
        self._pieces = np.stack([left, right, height, slope, sign[owner]], axis=1)[order]
        self._offsets = np.searchsorted(cell[order], np.arange(CELLS * CELLS + 1))

    def area_px0(self, x_px0: Floats, y_px0: Floats, side_px0: float) -> Floats:
        """Area of tissue within squares.

        Args:
            x_px0: (N,) left edges, level-0 pixels.
            y_px0: (N,) top edges.
            side_px0: side of all squares.

        Returns:
            (N,) float64 in px0^2; exact up to rounding.
        """
        first, last = self._cell(x_px0, 0), self._cell(x_px0 + side_px0, 0)
        top, bottom = self._cell(y_px0, 1), self._cell(y_px0 + side_px0, 1)
        rows = bottom - top + 1
        square = np.repeat(np.arange(len(x_px0)), rows)
        row = (top[square] + _count_up(rows)) * CELLS
        begin = self._offsets[row + first[square]]
        count = self._offsets[row + last[square] + 1] - begin
        area = np.zeros(len(x_px0))
        total = np.cumsum(count)
        cuts = np.searchsorted(total, np.arange(MAX_PIECES, total[-1:].sum(), MAX_PIECES))
        for part in np.split(np.arange(len(square)), cuts):
            owner = np.repeat(square[part], count[part])
            if len(owner):
                piece = np.repeat(begin[part], count[part]) + _count_up(count[part])
                values = self._integral(piece, x_px0[owner], y_px0[owner], side_px0)
                sums = np.bincount(owner - owner[0], values)
                area[owner[0] : owner[-1] + 1] += sums
        return np.clip(area, 0.0, side_px0**2)

    def fraction(self, x_px0: Floats, y_px0: Floats, side_px0: float) -> Floats:
        """Share of each square that is tissue, (N,) float64; arguments as `area_px0`."""
        return self.area_px0(x_px0, y_px0, side_px0) / side_px0**2

    def _cell(self, position_px0: Floats, axis: int) -> Ints:
        number = np.floor((position_px0 - self._origin_px0[axis]) / self._cell_px0[axis])
        return np.asarray(np.clip(number, 0, CELLS - 1), dtype=np.int64)

    def _rows(self, points: Floats, backward: npt.NDArray[np.bool_]) -> tuple[Floats, Ints, Floats]:
        """Edges cut at the borders of the rows, and level pieces that close each row.

        Returns:
            Pieces (P, 2, 2) from left to right, their rows (P,) and signs (P,). The sign is that
            of the area above a piece (towards smaller y): -1 where outer rings run to the right.
        """
        cut, row, owner = self._cut(points, axis=1)
        crossing = np.flatnonzero(owner[1:] == owner[:-1])
        border, at = row[crossing + 1], cut[crossing, 1, 0]
        order = np.lexsort((at, border))
        border, at = border[order][::2], at[order].reshape(-1, 2)
        level = np.empty((len(border), 2, 2))
        level[:, :, 0] = at
        level[:, :, 1] = (self._origin_px0[1] + border * self._cell_px0[1])[:, None]
        rightward = (cut[:, 0, 0] < cut[:, 1, 0]) != backward[owner]
        sign = np.where(rightward, -1.0, 1.0)
        pieces = np.concatenate([_left_to_right(cut), level, level])
        rows = np.concatenate([row, border - 1, border])
        ones = np.ones(len(border))
        signs = np.concatenate([sign, ones, -ones])
        wide = pieces[:, 0, 0] < pieces[:, 1, 0]
        return pieces[wide], rows[wide], signs[wide]

    def _cut(self, points: Floats, axis: int) -> tuple[Floats, Ints, Ints]:
        """Cut segments (E, 2, 2) that ascend along `axis` at the grid's borders across it.

        Returns:
            Pieces (P, 2, 2) in order, their cell along `axis` (P,), the segment of each (P,).
        """
        first, last = (self._cell(points[:, end, axis], axis) for end in (0, 1))
        count = last - first + 1
        owner = np.repeat(np.arange(len(points)), count)
        cell = first[owner] + _count_up(count)
        pieces = points[owner]
        inner = np.flatnonzero(cell > first[owner])
        border = self._origin_px0[axis] + cell[inner] * self._cell_px0[axis]
        start, end = points[owner[inner], 0], points[owner[inner], 1]
        share = (border - start[:, axis]) / (end[:, axis] - start[:, axis])
        meeting = start + share[:, None] * (end - start)
        meeting[:, axis] = border
        pieces[inner, 0], pieces[inner - 1, 1] = meeting, meeting
        return pieces, cell, owner

    def _integral(self, piece: Ints, left: Floats, top: Floats, side: float) -> Floats:
        """Signed integral over x of each piece's height above `top`, clamped to [0, side]."""
        begin, end, height, slope, sign = self._pieces[piece].T
        start = np.maximum(begin, left)
        length = np.maximum(np.minimum(end, left + side) - start, 0)
        near = height + slope * (start - begin) - top
        rise = slope * length
        low, high = np.minimum(near, near + rise), np.maximum(near, near + rise)
        inner_low, inner_high = np.clip(low, 0, side), np.clip(high, 0, side)
        # The part inside the band counts with its mean height, the part above with the whole side.
        inside = (inner_high - inner_low) * (inner_high + inner_low) / 2
        above = np.maximum(high - np.maximum(low, side), 0) * side
        span = high - low
        level = span <= 0
        mean = np.where(level, inner_low, (inside + above) / np.where(level, 1.0, span))
        return np.asarray(sign * mean * length)


def _edges(tissue: geometry.MultiPolygon) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Edges (E, 2, 2) with y ascending, and which of them ran the other way in their ring."""
    parts = shapely.get_parts(shapely.orient_polygons(tissue, exterior_cw=False))
    points, ring = shapely.get_coordinates(shapely.get_rings(parts), return_index=True)
    edges = np.stack([points[:-1], points[1:]], axis=1)[ring[1:] == ring[:-1]]
    backward = edges[:, 0, 1] > edges[:, 1, 1]
    edges[backward] = edges[backward, ::-1]
    return edges, backward


def _left_to_right(segments: Floats) -> Floats:
    turned = segments[:, 0, 0] > segments[:, 1, 0]
    return np.where(turned[:, None, None], segments[:, ::-1], segments)


def _count_up(count: Ints) -> Ints:
    """0, 1, ... count[0] - 1, 0, 1, ... count[1] - 1, and so on."""
    stop = np.cumsum(count)
    return np.arange(int(count.sum())) - np.repeat(stop - count, count)
