"""Patch number i of a run as a pure function of (seed, i): slide, mpp and position.

Paper, section IV-B: a slide is sampled first, then coordinates with a minimum area overlap of the
patch with the tissue polygon; section IV-C (iii): 256 x 256 pixels with at least 40 % foreground.
Nothing is remembered between draws, so that resume, workers and ranks change nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from typing import Literal, Protocol

import numpy as np
import polars as pl
import shapely
from numpy import typing as npt
from shapely import geometry

from pathfm_cli import artifacts, errors
from pathfm_cli.data import select
from pathfm_cli.data import where as conditions

PLACE = 0
"""Purpose number of `rng` for slide, mpp and position; augmentations use others."""
NEAR = 105
"""Purpose number for a position around another patch."""
CHUNK = 32
"""Positions generated at a time."""
CHUNKS = 32
"""Chunks tried on a slide before another slide is drawn."""
REDRAWS = 64
"""Slides tried before a draw gives up."""
CACHED_POLYGONS = 64
SHARE_DIGITS = 9
"""Digits that are kept of a patch's tissue share."""
OVERHANG_PX0 = 1e-6
"""A patch may reach over the slide's edge by so much: its side is rounded."""
BLOCK = 1 << 14
"""Slides looked at together: what lies between stays in the cache."""

REASONS = (
    "",
    "the scan is too coarse for this mpp",
    "the patch is larger than the slide",
    "the slide has less tissue than one patch needs",
)
"""Why a pair of slide and mpp gives no patches; `feasibility` returns positions in this list."""


Strategy = Literal["uniform", "area", "column"]


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """One square of tissue: number, position of the slide in the cohort, place, tissue share."""

    index: int
    slide: int
    x_px0: float
    y_px0: float
    mpp: float
    size_px: int
    tissue_fraction: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """How patches are drawn."""

    mpp: tuple[float, ...]
    """Resolutions in um/px; 0.25, 0.5, 1, 2 are the paper's 40x, 20x, 10x, 5x (IV-C (iv))."""
    mpp_weights: tuple[float, ...] = ()
    """Relative frequency of each mpp on a slide that can give all of them; empty means equal."""
    size_px: int = 256
    """Side of a patch in pixels at its mpp (paper IV-C (iii))."""
    min_tissue: float = 0.4
    """Least share of a patch's area inside the tissue polygon (paper IV-C (iii))."""
    strategy: Strategy = "uniform"
    """A slide's chance: the same for all, its tissue area, or `weights_column` (paper IV-B)."""
    weights_column: str = ""
    """Column of the slides with a weight per slide, for the strategy `column`."""
    max_upsample: float = 1.25
    """A patch may be finer than level 0 by this factor at most."""
    where: str = ""
    """Condition on the slides' columns, see `where`; empty: all."""
    subset: float = 1.0
    """Share of those slides, nested, see `select` (paper II-D1: 0.01, 0.1, 0.3)."""
    subset_seed: int = 0
    """Seed of the order that `subset` takes the first of; the run's own does not matter."""

    def __post_init__(self) -> None:
        mpp, weights = self.mpp, self.mpp_weights or (1.0,) * len(self.mpp)
        _check(bool(mpp), "mpp is empty", "--mpp 0.5")
        _check(all(0 < m < math.inf for m in mpp), f"mpp {mpp} must be above 0", "--mpp 0.5")
        _check(len(set(mpp)) == len(mpp), f"mpp {mpp} names a value twice", "--mpp 0.5,1")
        _check(len(weights) == len(mpp), "mpp_weights needs one weight per mpp", "[1, 1]")
        sound = all(0 <= w < math.inf for w in weights) and sum(weights) > 0
        _check(sound, f"mpp_weights {weights} must be >= 0, and one above 0", "[1, 1]")
        _check(self.size_px > 0, f"size_px is {self.size_px}; it must be above 0", "--size 256")
        share = self.min_tissue
        _check(0 <= share <= 1, f"min_tissue {share} is no share of an area", "--min-tissue 0.4")
        factor = self.max_upsample
        _check(1 <= factor < math.inf, f"max_upsample {factor} is below 1", "max_upsample = 1.25")
        if self.where:
            conditions.parse(self.where)
        _check(0 < self.subset <= 1, f"subset {self.subset} is no share above 0", "--subset 0.1")
        known = ", ".join(typing.get_args(Strategy))
        named = self.strategy in typing.get_args(Strategy)
        _check(named, f"strategy {self.strategy} is none of {known}", "--strategy area")
        by_column = self.strategy == "column"
        _check(
            bool(self.weights_column) == by_column,
            "The strategy column and weights_column need each other",
            "--weights COLUMN",
        )


class Source(Protocol):
    """Anything that knows patch number `index`; `attempt` asks for a replacement."""

    def draw(self, index: int, attempt: int = 0) -> Patch:
        """Return the patch; equal arguments give equal patches."""


def rng(seed: int, index: int, purpose: int, attempt: int = 0) -> np.random.Generator:
    """Generator for one purpose of one patch, independent of every other.

    Philox4x64 keyed by (seed, purpose) with the counter at (0, index, attempt, 0): Salmon et al.,
    "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Args:
        seed: 0 to 2^64 - 1.
        index: number of the patch, not negative.
        purpose: what the numbers are for, see `PLACE`.
        attempt: number of the replacement, if the first patch could not be read.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, index, attempt, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def extent_px0(size_px: int, mpp: float, mpp0: float) -> float:
    """Side of a patch in level-0 pixels."""
    return size_px * mpp / mpp0


def tissue_fraction(
    tissue: geometry.MultiPolygon, x_px0: float, y_px0: float, extent_px0: float
) -> float:
    """Share of the square's area that lies inside the polygons, exact and then rounded.

    GEOS' clip by a rectangle is 5 times faster than a general intersection and, as its
    area is all that is wanted, may share edges with itself. Nine digits are kept, so that a square
    full of tissue has the share 1, and another build of GEOS draws the same patches.
    """
    clipped = shapely.clip_by_rect(tissue, x_px0, y_px0, x_px0 + extent_px0, y_px0 + extent_px0)
    return round(float(clipped.area) / extent_px0**2, SHARE_DIGITS)


def feasibility(slides: pl.DataFrame, config: SampleConfig) -> npt.NDArray[np.int8]:
    """Which slide can give patches of which mpp.

    Args:
        slides: rows of a `tissue` table without `error`.
        config: how patches are drawn.

    Returns:
        (slides, mpp) int8: 0 where it can, else the position of the reason in `REASONS`.
    """
    names = ("mpp", "width_px0", "height_px0", "tissue_area_mm2")
    columns = [slides[name].to_numpy() for name in names]
    mpp = np.asarray(config.mpp)[None, :]
    needed_um2 = config.min_tissue * (config.size_px * mpp) ** 2
    reason = np.zeros((slides.height, mpp.size), dtype=np.int8)
    for start in range(0, slides.height, BLOCK):
        rows = slice(start, start + BLOCK)
        mpp0, width, height, area_mm2 = (column[rows, None] for column in columns)
        block = reason[rows]
        tissue_um2 = area_mm2 * 1e6
        block[(tissue_um2 <= 0) | (tissue_um2 < needed_um2)] = 3
        block[config.size_px * mpp / mpp0 > np.minimum(width, height) + OVERHANG_PX0] = 2
        block[mpp * config.max_upsample < mpp0] = 1
    return reason


def check_feasible(slides: pl.DataFrame, config: SampleConfig) -> None:
    """Raise if no slide can give a patch of any mpp.

    Args:
        slides: rows of a `tissue` table without `error`.
        config: how patches are drawn.

    Raises:
        errors.UsageError: it names pairs of slide and mpp, and why each is unfit.
    """
    reasons = feasibility(slides, config)
    if (reasons == 0).any():
        return
    if slides.is_empty():
        raise errors.UsageError("No slide is usable: all carry errors.", "pathfm show FILE")
    pairs = [
        f"{slide} at mpp {mpp:g}: {REASONS[reasons[row, column]]}"
        for row, slide in enumerate(slides["slide"][:3])
        for column, mpp in enumerate(config.mpp)
    ]
    more = f"; and {reasons.size - 3} more" if reasons.size > 3 else ""
    raise errors.UsageError(
        f"No slide can give a patch: {'; '.join(pairs[:3])}{more}.",
        "name a coarser --mpp, a smaller --size or a lower --min-tissue",
    )


def taking_part(frame: pl.DataFrame, config: SampleConfig) -> npt.NDArray[np.bool_]:
    """Which slides without error `where` and `subset` leave; as `select.chosen`."""
    return select.chosen(frame, config.where, config.subset, config.subset_seed)


class Sampler:
    """Draws patches from the tissue of a cohort; a pure function of (seed, index).

    Args:
        table: an opened `tissue` artifact; rows with `error` are left out.
        config: how patches are drawn.
        seed: 0 to 2^64 - 1.

    Raises:
        errors.UsageError: no slide can give a patch of any of the mpp, or the weights are unfit.
    """

    def __init__(self, table: artifacts.Table, config: SampleConfig, seed: int) -> None:
        frame = table.frame.filter(pl.col("error").is_null())
        _check(0 <= seed < 2**64, f"The seed {seed} is not in [0, 2^64)", "--seed 0")
        chosen = taking_part(frame, config)
        reasons = feasibility(frame, config)
        if (reasons[chosen] != 0).all():
            check_feasible(frame.filter(chosen), config)
        self.config, self.seed = config, seed
        self._mpp0 = frame["mpp"].to_numpy()
        self._size_px0 = frame.select("width_px0", "height_px0").to_numpy()
        self._wkb = frame["geometry"]
        self._polygons: dict[int, tuple[int, geometry.MultiPolygon]] = {}
        weights = np.asarray(config.mpp_weights or (1.0,) * len(config.mpp))
        self._mpp_cdf = np.cumsum((reasons == 0) * weights, axis=1)
        usable = chosen & (self._mpp_cdf[:, -1] > 0)
        self._slide_cdf = np.cumsum(_slide_weights(frame, config) * usable)
        if self._slide_cdf[-1] <= 0:
            raise errors.UsageError(
                "Every slide that can give a patch has the weight 0.", "other weights"
            )

    def draw(self, index: int, attempt: int = 0) -> Patch:
        """Patch number `index`.

        The slide comes by the strategy, the mpp by its weights among those that the slide can give,
        the position uniformly among all whole level-0 pixels where the patch lies inside the slide
        and holds enough tissue. Where `CHUNKS` times `CHUNK` positions fail,
        another slide is drawn.

        Raises:
            errors.SlideError: `REDRAWS` slides in a row gave no position.
        """
        random = rng(self.seed, index, PLACE, attempt)
        for _ in range(REDRAWS):
            slide = _choose(self._slide_cdf, random)
            mpp = self.config.mpp[_choose(self._mpp_cdf[slide], random)]
            if place := self._place(random, slide, mpp):
                x, y, share = place
                return Patch(index, slide, x, y, mpp, self.config.size_px, share)
        raise errors.SlideError(
            f"Patch {index}: {REDRAWS} slides in a row have no place with"
            f" {self.config.min_tissue:.0%} tissue.",
            "lower --min-tissue, or sample at a finer mpp",
        )

    def draw_near(self, anchor: Patch, index: int, attempt: int, side: int) -> Patch:
        """Patch number `index` from a square window around another patch of the same slide.

        Args:
            anchor: the patch in the middle of the window; slide and mpp are its own.
            index: number of the new patch.
            attempt: as in `draw`.
            side: side of the window, in sides of a patch; moved inside the slide at its edge.

        Returns:
            A patch uniformly among the whole pixels of the window where it holds enough tissue; the
            anchor's own place where `CHUNKS` times `CHUNK` positions fail.
        """
        extent = extent_px0(anchor.size_px, anchor.mpp, float(self._mpp0[anchor.slide]))
        reach = extent * (side - 1)
        start = np.floor(np.array([anchor.x_px0, anchor.y_px0]) - reach / 2)
        start = np.maximum(0, np.minimum(start, self._size_px0[anchor.slide] - extent - reach))
        random = rng(self.seed, index, NEAR, attempt)
        place = self._place(random, anchor.slide, anchor.mpp, (start, start + reach))
        x, y, share = place or (anchor.x_px0, anchor.y_px0, anchor.tissue_fraction)
        return dataclasses.replace(anchor, index=index, x_px0=x, y_px0=y, tissue_fraction=share)

    def _place(
        self,
        random: np.random.Generator,
        slide: int,
        mpp: float,
        inside: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
    ) -> tuple[float, float, float] | None:
        """Position and tissue share of a patch that fits, or None.

        `inside` bounds the position: its least and largest (x, y).
        """
        tissue = self._tissue(slide)
        extent = extent_px0(self.config.size_px, mpp, float(self._mpp0[slide]))
        bounds = np.asarray(tissue.bounds)
        low = np.maximum(np.ceil(bounds[:2] - extent), 0)
        high = np.minimum(
            np.floor(bounds[2:]), np.floor(self._size_px0[slide] - extent + OVERHANG_PX0)
        )
        if inside is not None:
            low, high = np.maximum(low, np.ceil(inside[0])), np.minimum(high, np.floor(inside[1]))
        for _ in range(CHUNKS if (low <= high).all() else 0):
            places = np.floor(low + random.random((CHUNK, 2)) * (high - low + 1))
            for x, y in places.tolist():
                share = tissue_fraction(tissue, x, y, extent)
                if share >= self.config.min_tissue:
                    return x, y, share
        return None

    def _tissue(self, slide: int) -> geometry.MultiPolygon:
        # One slot per remainder: threads may overwrite each other's polygon, never disturb it.
        slot = slide % CACHED_POLYGONS
        held = self._polygons.get(slot)
        if held is None or held[0] != slide:
            held = self._polygons[slot] = slide, shapely.from_wkb(self._wkb[slide])
        return held[1]


def _check(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise errors.UsageError(f"{message}.", hint)


def _slide_weights(frame: pl.DataFrame, config: SampleConfig) -> npt.NDArray[np.float64]:
    if config.strategy == "uniform":
        return np.ones(len(frame))
    if config.strategy == "area":
        return frame["tissue_area_mm2"].to_numpy()
    name = config.weights_column
    if name not in frame.columns:
        close = difflib.get_close_matches(name, frame.columns, n=1)
        hint = f"did you mean {close[0]}?" if close else f"columns: {', '.join(frame.columns)}"
        raise errors.UsageError(f"The slides have no column {name} for weights.", hint)
    weights = frame[name].cast(pl.Float64, strict=False)
    bad = frame["slide"].filter(~(weights.is_finite() & (weights >= 0)).fill_null(False))
    if len(bad):
        raise errors.UsageError(
            f"The column {name} is no weight (a number >= 0) for {len(bad)} slides,"
            f" such as {bad[0]}.",
            "give every slide one in the table of `pathfm index --metadata`",
        )
    return weights.to_numpy()


def _choose(cumulative: npt.NDArray[np.float64], random: np.random.Generator) -> int:
    """Position of one item, drawn by the weights whose cumulative sum is given."""
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
