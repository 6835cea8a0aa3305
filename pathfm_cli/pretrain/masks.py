"""Which patch tokens the student does not see, as a pure function of (seed, patch index).

Source: facebookresearch/dinov2, `data/collate.py` (which views, how much of each) and
`data/masking.py` (blocks, after BEiT). Legend: G global views, B batch, I = G * B images, N tokens
of a grid, M masked tokens of all images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pathfm_cli import errors
from pathfm_cli.data import draw

RATIOS = 110
"""Key of the stream of random numbers that says how much of each view of a step is masked."""
BLOCKS = 111
"""Key of the stream that says where, for each patch."""

GLOBAL_VIEWS = 2

_MIN_TOKENS = 4  # MaskingGenerator: min_num_patches
_MAX_SHARE = 0.5  # train.py: max_num_patches is half of the grid
_LOG_ASPECT = math.log(0.3)  # MaskingGenerator: min_aspect, and its inverse
_TRIES = 10  # MaskingGenerator._mask


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Masking:
    """How much is masked."""

    share: float
    """Share of the global views that are masked at all."""
    ratio: tuple[float, float]
    """Smallest and largest share of the tokens of such a view."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise errors.UsageError(f"Setting masks.share is {self.share}.", "0 to 1")
        low, high = self.ratio
        if not 0 <= low <= high <= 1:
            raise errors.UsageError(
                f"Setting masks.ratio is {[low, high]}.", "0 <= low <= high <= 1"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Masks:
    """Masks of I images: all first global views, then all second ones."""

    masked_IN: NDArray[np.bool_]

    @property
    def places_M(self) -> NDArray[np.int64]:
        """Where the masked tokens are among all I * N, ascending."""
        return np.flatnonzero(self.masked_IN).astype(np.int64)

    @property
    def weight_M(self) -> NDArray[np.float32]:
        """1 / masked tokens of the image that each masked token belongs to."""
        count_I = self.masked_IN.sum(axis=1)
        return (1 / np.repeat(count_I, count_I)).astype(np.float32)


def masks(
    config: Masking,
    seed: int,
    indices: Sequence[int] | NDArray[np.int64],
    batch_size: int,
    grid: tuple[int, int],
) -> Masks:
    """Draw the masks of both global views of some patches.

    Exactly `share` of the views of a step, over all ranks, are masked, and their ratios are spread
    evenly: one drawn from each of as many bins, then shuffled. So patches have the same masks
    however many ranks share the step. DINOv2 does this for each process alone.

    Args:
        config: how much.
        seed: of the run.
        indices: global patch indices, length B; index // batch_size is the step.
        batch_size: patches of a step over all ranks.
        grid: rows and columns of patch tokens.
    """
    height, width = grid
    masked_GBN = np.zeros((GLOBAL_VIEWS, len(indices), height * width), dtype=bool)
    for column, index in enumerate(map(int, indices)):
        step, position = divmod(index, batch_size)
        ratio_G = _ratios(config, seed, step, batch_size)[:, position]
        if not ratio_G.any():
            continue
        random = draw.rng(seed, index, BLOCKS)
        for view, ratio in enumerate(ratio_G.tolist()):
            mask_HW = blocks(random, int(height * width * ratio), grid)
            masked_GBN[view, column] = mask_HW.ravel()
    return Masks(masked_GBN.reshape(-1, height * width))


def blocks(random: np.random.Generator, wanted: int, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask rectangles until `wanted` tokens are masked, or no further rectangle fits.

    Each covers between 4 tokens and what is still wanted, at most half of the grid, at an aspect
    from 0.3 to 1 / 0.3, uniform in its logarithm; it is smaller than the grid on both sides, and
    may overlap others. Ten that mask nothing new or too much in a row end it.

    Returns:
        (height, width); never more than `wanted` are True.
    """
    mask_HW = np.zeros(grid, dtype=bool)
    most = int(_MAX_SHARE * mask_HW.size)
    left = wanted
    while left > 0:
        masked = _block(random, mask_HW, min(left, most))
        if not masked:
            break
        left -= masked
    return mask_HW


def _block(random: np.random.Generator, mask_HW: NDArray[np.bool_], limit: int) -> int:
    """Add a rectangle with 1 to `limit` new tokens; return their number, 0 after ten failures."""
    rows, columns = mask_HW.shape
    for _ in range(_TRIES):
        u, v, y, x = random.random(4).tolist()
        area = _MIN_TOKENS + u * (limit - _MIN_TOKENS)
        aspect = math.exp(_LOG_ASPECT * (1 - 2 * v))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = int(y * (rows - height + 1)), int(x * (columns - width + 1))
        inside = mask_HW[top : top + height, left : left + width]
        new = height * width - int(np.count_nonzero(inside))
        if 0 < new <= limit:
            inside[:] = True
            return new
    return 0


@functools.lru_cache(maxsize=4)
def _ratios(config: Masking, seed: int, step: int, batch_size: int) -> NDArray[np.float64]:
    """Share of the tokens to mask for every view (G, batch) of a step; 0 for those left alone."""
    views = GLOBAL_VIEWS * batch_size
    masked = int(views * config.share)
    random = draw.rng(seed, step, RATIOS)
    edges = np.linspace(*config.ratio, masked + 1)
    ratios = np.zeros(views)
    ratios[:masked] = edges[:-1] + np.diff(edges) * random.random(masked)
    return random.permutation(ratios).reshape(GLOBAL_VIEWS, batch_size)
