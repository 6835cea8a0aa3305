"""Tissue on a thumbnail by a threshold on stain: colour in optical density, cut by Otsu's rule.

Glass, dust and black borders are neutral: their optical density is alike in all channels. Stain is
not. So the feature is the spread of the three optical densities, which grows in proportion to the
amount of stain. Otsu's threshold (N. Otsu, IEEE Trans. SMC 9, 1979) on its square root is kept
within fixed bounds, because a slide without glass or without tissue has only one class to split.
Two limits: fat whose membranes are thin counts as glass, and stains in the colours of marker
(trichrome, Alcian blue) count as marker.
"""

from __future__ import annotations

import numpy as np
from numpy import typing as npt
from PIL import Image, ImageFilter

BLUR_UM = 12.0
"""Standard deviation of the blur: above JPEG's chroma noise, below a cell layer."""
THRESHOLD_OD = (0.02, 0.04)
"""Bounds of the threshold: above the noise of clean glass, below pale eosin."""
GLASS_MIN = 200
GLASS_SPREAD = 20
"""Glass is brighter than `GLASS_MIN` in every channel, and its channels differ by no more."""
GLASS_SHARE = 0.001
GLASS_DEFAULT = 245.0
"""Colour of glass assumed where fewer than `GLASS_SHARE` of the pixels look like glass."""
DARKEST = 10.0
"""Darker pixels count as this dark: near black, the ratio of two channels is noise."""
BLACK_OD = 0.6
"""A pixel denser than this in every channel is border, dust or black marker."""
PEN_WIDTH_UM = 48.0
"""Marker strokes are wider than this, stray pixels of tissue with such a colour are not."""
PEN_MARGIN_UM = 40.0
"""Washed-out rim that is removed around a marker stroke."""

_MAX_SPREAD_OD = 0.6
_BINS = 256


def foreground(rgb: npt.NDArray[np.uint8], mpp: float) -> npt.NDArray[np.bool_]:
    """Find the stained tissue of one thumbnail.

    Args:
        rgb: (H, W, 3) uint8.
        mpp: its resolution in um/px; about 8 is what the constants were chosen for.

    Returns:
        (H, W) bool, true on tissue; all false on blank glass.
    """
    blurred = Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(BLUR_UM / mpp))
    density = optical_density(np.asarray(blurred))
    spread = np.minimum(np.ptp(density, axis=2), _MAX_SPREAD_OD)
    ignored = (density.min(axis=2) > BLACK_OD) | _pen(density, mpp)
    low, high = THRESHOLD_OD
    threshold = otsu_threshold(np.sqrt(spread[~ignored]), np.sqrt(_MAX_SPREAD_OD)) ** 2
    tissue: npt.NDArray[np.bool_] = (spread > np.clip(threshold, low, high)) & ~ignored
    return tissue


def optical_density(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Optical density of each pixel against the slide's own glass.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        (H, W, 3) float32, -log10(I / glass), not below 0.
    """
    low, high = rgb.min(axis=2), rgb.max(axis=2)
    glass = (low >= GLASS_MIN) & (high - low <= GLASS_SPREAD)
    enough = np.count_nonzero(glass) > GLASS_SHARE * glass.size
    white = np.median(rgb[glass], axis=0) if enough else np.full(3, GLASS_DEFAULT)
    levels = np.maximum(np.arange(256, dtype=np.float32), DARKEST)
    table = np.maximum(-np.log10(levels[:, None] / white.astype(np.float32)), 0.0)
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=2)


def otsu_threshold(values: npt.NDArray[np.floating], top: float) -> float:
    """Threshold that separates `values`, in [0, top], into two classes as far apart as can be.

    Returns:
        The upper edge of the lower class; 0 when there are not two classes.
    """
    counts, edges = np.histogram(values, bins=_BINS, range=(0.0, top))
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    split = (below > 0) & (above > 0)
    if not split.any():
        return 0.0
    sums = np.cumsum(counts * centres)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = np.where(split, below * above * (mean_above - mean_below) ** 2, -1.0)
    return float(edges[int(np.argmax(between)) + 1])


def _pen(density: npt.NDArray[np.float32], mpp: float) -> npt.NDArray[np.bool_]:
    """Blue, green and red marker: colours that haematoxylin, eosin and DAB do not make.

    Those stains absorb green at least about as much as red, and never blue and green alike while
    they let red through.
    """
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    cold = (red - green > 0.12) | ((red - green > 0.04) & (red - blue > 0.30))
    warm = (green - red > 0.45) & (blue > 0.8 * green)
    radius_px = max(1, round(PEN_WIDTH_UM / 2 / mpp))
    margin_px = max(1, round(PEN_MARGIN_UM / mpp))
    core = _neighbours(cold | warm, radius_px) == (2 * radius_px + 1) ** 2
    return _neighbours(core, radius_px + margin_px) > 0


def _neighbours(mask: npt.NDArray[np.bool_], radius_px: int) -> npt.NDArray[np.int32]:
    """True pixels in the square of `2 * radius_px + 1` around each pixel."""
    side = 2 * radius_px + 1
    sums = np.pad(mask, ((radius_px + 1, radius_px),) * 2).cumsum(0, np.int32).cumsum(1, np.int32)
    rows = sums[side:] - sums[:-side]
    counts: npt.NDArray[np.int32] = rows[:, side:] - rows[:, :-side]
    return counts
