"""Calibration: whether a predicted probability is how often the prediction is right.

Legend: R = runs, N = rows, C = classes, B = bins of the probability of the predicted class.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

BINS = 15
"""Of equal width over 0..1: Guo et al. 2017."""
Values = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """How probabilities and outcomes agree.

    Attributes:
        ece: expected calibration error by run, (R,): the mean over rows of |right - confident| of
            their bin.
        brier: mean squared distance of the probabilities to the truth, summed over classes, (R,);
            0 to 2.
        count: rows in each bin, all runs together, (B,).
        confidence: mean probability of the predicted class in each bin, (B,); NaN if empty.
        accuracy: share of right predictions in each bin, (B,); NaN if empty.
    """

    ece: Values
    brier: Values
    count: npt.NDArray[np.int64]
    confidence: Values
    accuracy: Values


def measure(
    probability_RNC: Values,
    predicted_RN: npt.NDArray[np.int64],
    truth_N: npt.NDArray[np.int64],
) -> Calibration:
    """Measure the calibration of every run.

    Args:
        probability_RNC: of every class; sums to 1 over C.
        predicted_RN: the class that is taken.
        truth_N: the class that is true.
    """
    confident_RN = np.take_along_axis(probability_RNC, predicted_RN[..., None], 2)[..., 0]
    right_RN = (predicted_RN == truth_N).astype(np.float64)
    bin_RN = np.minimum((confident_RN * BINS).astype(np.int64), BINS - 1)
    runs, rows = right_RN.shape
    cell_RN = bin_RN + BINS * np.arange(runs)[:, None]

    def by_bin(weights: Values | None) -> Values:
        flat = None if weights is None else weights.ravel()
        sums = np.bincount(cell_RN.ravel(), weights=flat, minlength=runs * BINS)
        return sums.reshape(runs, BINS).astype(np.float64)

    count_RB, confident_RB, right_RB = by_bin(None), by_bin(confident_RN), by_bin(right_RN)
    true_RN = probability_RNC[:, np.arange(rows), truth_N]
    brier_R = (np.square(probability_RNC).sum(2) - 2 * true_RN + 1).mean(1)
    count_B = count_RB.sum(0)
    with np.errstate(invalid="ignore"):
        return Calibration(
            ece=np.abs(right_RB - confident_RB).sum(1) / rows,
            brier=brier_R,
            count=count_B.astype(np.int64),
            confidence=confident_RB.sum(0) / count_B,
            accuracy=right_RB.sum(0) / count_B,
        )
