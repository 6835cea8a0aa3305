"""Which slides of a cohort take part: those that meet a condition, and a share of them.

The share is nested: slides are put in an order that depends on the seed and each slide's own name,
and the first of them are taken. So 1 % lies in 10 %, and both stay what they are for other seeds of
the run and for the same slides in another order (paper, II-D1: subsets of 1, 10 and 30 % of TCGA).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import polars as pl
from numpy import typing as npt

from pathfm_cli import errors
from pathfm_cli.data import where


def chosen(frame: pl.DataFrame, condition: str, subset: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which rows take part.

    Args:
        frame: rows about slides, those with an error left out.
        condition: as `where.matches` reads it; empty for all slides.
        subset: share of the slides that meet it, above 0 and up to 1; rounded up to whole slides.
        seed: of the order that the share is taken from.

    Returns:
        A boolean for each row.

    Raises:
        errors.UsageError: the condition cannot be used, or no slide meets it.
    """
    taking = np.ones(frame.height, dtype=bool)
    if condition:
        taking = where.matches(frame, condition).to_numpy()
        if frame.height and not taking.any():
            raise errors.UsageError(
                f"None of the {frame.height} slides meets {condition!r}.",
                "; ".join(where.values(frame, condition)) or "another condition",
            )
    if subset >= 1:
        return taking
    names = frame["slide"].to_list()
    rows = np.flatnonzero(taking)
    digests = b"".join(_order(seed, names[row]) for row in rows.tolist())
    words = np.frombuffer(digests, ">u8").reshape(len(rows), 4)
    # A share such as 0.1 of 30 is 3.0000000000000004.
    count = math.ceil(round(subset * len(rows), 6))
    few = np.zeros(frame.height, dtype=bool)
    few[rows[_least(words, count)]] = True
    return few


def _least(words: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.int64]:
    """Rows of the `count` least, compared as bytes are: the first word decides, then the next."""
    if not count:
        return np.empty(0, dtype=np.int64)
    first = words[:, 0].astype(np.uint64)
    near = np.flatnonzero(first <= np.partition(first, count - 1)[count - 1])
    return near[np.lexsort(words[near].T[::-1])[:count]]


def _order(seed: int, slide: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{slide}".encode()).digest()
