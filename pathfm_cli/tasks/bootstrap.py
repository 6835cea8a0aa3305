"""Bootstrap intervals of balanced accuracy: rows, or whole groups, drawn again with replacement.

Legend: N = rows, U = units (rows or groups), C = classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pathfm_cli.data import draw

PURPOSE = 106
"""Of the random numbers."""
DRAWS = 1000
LEVEL = 0.95


def balanced_accuracy(
    labels_N: npt.NDArray[np.int64],
    right_N: npt.NDArray[np.float64],
    units_N: npt.NDArray[np.int64],
    seed: int,
) -> tuple[float, float]:
    """Percentile interval of the mean balanced accuracy over runs.

    The interval holds the chance in the choice of the test images, not that of training.

    Args:
        labels_N: as in `resampled`, like the others.
        right_N: share of the runs that predict it.
        units_N: what is drawn together.
        seed: of the draws.

    Returns:
        Lower and upper end of the central `LEVEL` of `DRAWS` resamples.
    """
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled(labels_N, right_N, units_N, seed), [tail, 1 - tail])
    return float(low), float(high)


def resampled(
    labels_N: npt.NDArray[np.int64],
    right_N: npt.NDArray[np.float64],
    units_N: npt.NDArray[np.int64],
    seed: int,
) -> npt.NDArray[np.float64]:
    """Balanced accuracy of `DRAWS` resamples, the same units in each whatever was predicted.

    A resample without a class leaves it out, as `metrics.balanced_accuracy` does.

    Args:
        labels_N: class of each row.
        right_N: share of the runs that predict it.
        units_N: number 0, 1, ... of what is drawn together, as a patient; `arange(N)` draws rows.
        seed: of the draws.
    """
    units, classes = int(units_N.max()) + 1, int(labels_N.max()) + 1
    cells = units_N * classes + labels_N
    size = units * classes
    counts_UC = np.bincount(cells, minlength=size).reshape(units, classes).astype(np.float64)
    hits_UC = np.bincount(cells, weights=right_N, minlength=size).reshape(units, classes)
    rng = draw.rng(seed, 0, PURPOSE)
    scores = np.empty(DRAWS)
    for number in range(DRAWS):
        drawn_U = np.bincount(rng.integers(units, size=units), minlength=units).astype(np.float64)
        seen_C = drawn_U @ counts_UC
        there = seen_C > 0
        scores[number] = np.mean((drawn_U @ hits_UC)[there] / seen_C[there])
    return scores
