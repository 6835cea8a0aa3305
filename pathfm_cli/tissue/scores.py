"""How well a mask agrees with its truth: overlap, outline, missed and false area."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy import typing as npt
from scipy import ndimage

BOUNDARY_UM = 24.0
"""Half width of the band around an outline that boundary Dice compares."""

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """Areas in pixels, of one image or summed over several.

    Attributes:
        both: tissue in mask and truth.
        missed: tissue in the truth only.
        false: tissue in the mask only.
        glass: tissue in neither.
        edge_both: pixels of both bands, where mask and truth agree on a band's pixels.
        edge_sum: pixels of the mask's band and of the truth's band, added.
    """

    both: int = 0
    missed: int = 0
    false: int = 0
    glass: int = 0
    edge_both: int = 0
    edge_sum: int = 0

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|); 1 if both are empty."""
        total = 2 * self.both + self.missed + self.false
        return 2 * self.both / total if total else 1.0

    @property
    def boundary_dice(self) -> float:
        """Dice of the inner bands along the two outlines; 1 if neither has an outline."""
        return 2 * self.edge_both / self.edge_sum if self.edge_sum else 1.0

    @property
    def missed_area(self) -> float:
        """Share of the true tissue that was missed; 0 if there is none."""
        tissue = self.both + self.missed
        return self.missed / tissue if tissue else 0.0

    @property
    def false_area(self) -> float:
        """Share of the true background that was taken for tissue; 0 if there is none."""
        background = self.false + self.glass
        return self.false / background if background else 0.0


def compare(mask: Mask, truth: Mask, mpp: float) -> Score:
    """Score one mask.

    Args:
        mask: (H, W) bool, what was found.
        truth: (H, W) bool.
        mpp: resolution of both, um/px.
    """
    width_px = BOUNDARY_UM / mpp
    edges = _band(mask, width_px), _band(truth, width_px)
    return Score(
        both=int(np.count_nonzero(mask & truth)),
        missed=int(np.count_nonzero(truth & ~mask)),
        false=int(np.count_nonzero(mask & ~truth)),
        glass=int(np.count_nonzero(~mask & ~truth)),
        edge_both=int(np.count_nonzero(edges[0] & edges[1])),
        edge_sum=int(np.count_nonzero(edges[0]) + np.count_nonzero(edges[1])),
    )


def total(scores: Iterable[Score]) -> Score:
    """Add up areas, so that every pixel counts the same."""
    rows = [dataclasses.astuple(score) for score in scores]
    return Score(*(int(value) for value in np.sum(rows, axis=0))) if rows else Score()


def _band(mask: Mask, width_px: float) -> Mask:
    """Pixels of a mask within `width_px` of a pixel outside it, as boundary IoU has it.

    Cheng et al., "Boundary IoU", CVPR 2021. The edge of the image is no outline.
    """
    if mask.all() or not mask.any():
        return np.zeros_like(mask)
    return np.asarray(mask & (ndimage.distance_transform_edt(mask) <= width_px))
