"""Slides and their levels as values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from pathfm_cli import errors
from pathfm_cli.wsi import tiles

LEVEL_TOLERANCE = 0.02
"""A level this much coarser than asked still counts as equal."""

Policy = Literal["finer", "closest"]
"""Which level is read: the nearest one finer than or equal to what is asked, or "the image level
closest to the target magnification level" (paper, section IV-B), which may be coarser."""


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """One level: geometry, how its tiles are coded, and their rows in the tile table.

    Attributes:
        downsample: ratio of sizes, mean of x and y, as openslide states it; seldom an integer.
        place: rows in the tile table.
        scale: level-0 pixels per pixel in x and y, by which coordinates are converted: see
            `grid_scale`.
    """

    width_px: int
    height_px: int
    downsample: float
    tile_width_px: int
    tile_height_px: int
    codec: str
    place: tiles.Place
    scale: tuple[float, float]

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.width_px // self.tile_width_px)


@dataclasses.dataclass(frozen=True, slots=True)
class Slide:
    """A slide that can be read; levels run from finest to coarsest."""

    slide: str
    uri: str
    size_bytes: int
    etag: str
    mpp: float
    width_px0: int
    height_px0: int
    levels: tuple[Level, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Slide:
        """Build it from a row of a `slides` (or `tissue`) table.

        Raises:
            errors.SlideError: the row carries an error or describes no pyramid.
        """
        if row["error"] is not None or not row["levels"] or not row["mpp"]:
            raise errors.SlideError(row["error"] or f"{row['slide']}: its row is damaged")
        size = (row["width_px0"], row["height_px0"])
        if not all(_plausible(fields, size) for fields in row["levels"]):
            raise errors.SlideError(f"{row['slide']}: its row is damaged")
        levels = tuple(_level(fields, size) for fields in row["levels"])
        return cls(
            slide=row["slide"],
            uri=row["uri"],
            size_bytes=row["size_bytes"],
            etag=row["etag"],
            mpp=row["mpp"],
            width_px0=row["width_px0"],
            height_px0=row["height_px0"],
            levels=levels,
        )

    def level_for(self, mpp: float, policy: Policy = "finer") -> int:
        """Number of the level to read for `mpp`.

        Args:
            mpp: resolution asked for, um/px.
            policy: `finer`: the coarsest level that is finer than or equal to `mpp` (2 %
                tolerance), else level 0. `closest`: the level whose ratio to `mpp` is nearest to
                1, the finer one of two that are equally near.
        """
        ratios = [self.mpp * level.downsample / mpp for level in self.levels]
        if policy == "closest":
            return min(range(len(ratios)), key=lambda number: abs(math.log(ratios[number])))
        fits = (number for number, ratio in enumerate(ratios) if ratio <= 1 + LEVEL_TOLERANCE)
        return max(fits, default=0)


def grid_scale(size_px0: tuple[int, int], size_px: tuple[int, int]) -> tuple[float, float]:
    """Level-0 pixels per level pixel in x and y.

    Scanners shrink by a whole factor and cut (or pad) the last pixel, so a level 1106 px wide of a
    slide 17707 px wide is 16 times coarser, not 16.01 times: by the ratio the far edge is 11 px
    off. On every slide at hand, genuine Aperio ones included, the whole factor fits the pixels
    better. The ratio of sizes is used where no whole factor explains both of them.

    Args:
        size_px0: (width, height) of level 0.
        size_px: (width, height) of the level.
    """
    factor = round(size_px0[0] / size_px[0])
    if all(
        whole // factor <= part <= -(-whole // factor)
        for whole, part in zip(size_px0, size_px, strict=True)
    ):
        return float(factor), float(factor)
    return size_px0[0] / size_px[0], size_px0[1] / size_px[1]


def _plausible(fields: Mapping[str, Any], size_px0: tuple[int, int]) -> bool:
    """Whether a level has a size and as many tiles as that needs."""
    width, height = fields["width_px"], fields["height_px"]
    tile_width, tile_height = fields["tile_width_px"], fields["tile_height_px"]
    if not (0 < width <= size_px0[0] and 0 < height <= size_px0[1]):
        return False
    if tile_width <= 0 or tile_height <= 0:
        return False
    return bool(-(-width // tile_width) * -(-height // tile_height) == fields["tiles"])


def _level(fields: Mapping[str, Any], size_px0: tuple[int, int]) -> Level:
    values = dict(fields)
    names = [field.name for field in dataclasses.fields(tiles.Place)]
    place = tiles.Place(**{name: values.pop(name) for name in names})
    scale = grid_scale(size_px0, (values["width_px"], values["height_px"]))
    return Level(place=place, scale=scale, **values)
