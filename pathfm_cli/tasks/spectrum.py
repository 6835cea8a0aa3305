"""What the spectrum of embeddings tells: RankMe, alpha-ReQ, and how variance is shared.

Legend: N rows, K width, R = min(N, K) numbers in a spectrum, falling.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
RANKME_EPSILON = 1e-7
"""Added to every normalised singular value (RankMe, Garrido et al. 2023, eq. 1)."""
ALPHA_RANKS = (4, 100)
"""First and last rank of the fit, as in the code released with alpha-ReQ (Agrawal et al. 2022)."""
LEAST_RANKS = 3
"""A line through fewer points says nothing."""
_EPS = float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True, slots=True)
class Alpha:
    """A power law fitted to variances: the r-th is proportional to r ** -exponent."""

    exponent: float
    first: int
    """First rank of the fit, counted from 1."""
    last: int
    """Last rank of the fit: fewer than `ALPHA_RANKS` says where variances end in round-off."""


def rankme(singular_R: F64) -> float:
    """Exponential of the entropy of the singular values of the uncentred rows, up to R."""
    shares = singular_R / singular_R.sum() + RANKME_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alpha(variances_R: F64) -> Alpha | None:
    """Fit the power law by least squares on logarithms, rank r with weight 1 / r.

    Args:
        variances_R: falling; those that are 0 (see `significant`) end the fit.

    Returns:
        The fit, or None where fewer than `LEAST_RANKS` variances lie in `ALPHA_RANKS`.
    """
    first, last = ALPHA_RANKS
    last = min(last, int((variances_R > 0).sum()))
    if last - first + 1 < LEAST_RANKS:
        return None
    ranks = np.arange(first, last + 1)
    x, y, weights = np.log(ranks), np.log(variances_R[first - 1 : last]), 1 / ranks
    x = x - np.average(x, weights=weights)
    return Alpha(-float((weights * x * y).sum() / (weights * x * x).sum()), first, last)


def top_share(variances_R: F64, count: int) -> float | None:
    """Share of all variance in the `count` largest; None where there is no variance."""
    total = variances_R.sum()
    return float(variances_R[:count].sum() / total) if total > 0 else None


def significant(eigenvalues: npt.NDArray[np.floating[Any]], scale: float = 0.0) -> F64:
    """Eigenvalues of a Gram matrix, falling, those at the round-off of float64 set to 0.

    Args:
        eigenvalues: (R,), rising, as numpy returns them.
        scale: mean square of the rows before their mean was taken off; its round-off stays behind.
    """
    noise = len(eigenvalues) * _EPS * max(float(eigenvalues.max()), _EPS * scale)
    return np.where(eigenvalues > noise, eigenvalues, 0.0)[::-1]
