"""Scores from integer confusion tables: rows are the truth, columns the prediction.

Legend: C = classes, any leading shape may be batched (runs, images). Sums are taken over integers,
so a score does not depend on the order of the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def confusion(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int) -> Counts:
    """Count pairs of (truth, prediction).

    Args:
        truth: integers in 0..classes-1, any shape.
        predicted: the same shape, the same range.
        classes: C.

    Returns:
        (C, C) int64.
    """
    pairs = truth.ravel().astype(np.int64) * classes + predicted.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def recall(table: Counts) -> Values:
    """Recall per class, (..., C); NaN for a class that does not occur in the truth."""
    return _ratio(_hits(table), table.sum(axis=-1))


def balanced_accuracy(table: Counts) -> Values:
    """Mean recall over the classes that occur in the truth, shape (...)."""
    return np.asarray(np.nanmean(recall(table), axis=-1))


def accuracy(table: Counts) -> Values:
    """Share of the pairs that agree, shape (...)."""
    return _ratio(_hits(table).sum(axis=-1), table.sum(axis=(-2, -1)))


def dice(table: Counts) -> Values:
    """Dice per class, 2 TP / (2 TP + FP + FN), (..., C); NaN if in neither truth nor prediction."""
    return _ratio(2 * _hits(table), table.sum(axis=-1) + table.sum(axis=-2))


def iou(table: Counts) -> Values:
    """Intersection over union per class, TP / (TP + FP + FN), (..., C); NaN as for `dice`."""
    hits = _hits(table)
    return _ratio(hits, table.sum(axis=-1) + table.sum(axis=-2) - hits)


def dice_micro_foreground(table: Counts) -> Values:
    """Dice with the pixels of all classes but 0 (background) pooled, shape (...).

    2 sum_c TP_c / sum_c (2 TP_c + FP_c + FN_c) over c >= 1; NaN without any foreground.
    """
    sizes = table.sum(axis=-1) + table.sum(axis=-2)
    return _ratio(2 * _hits(table)[..., 1:].sum(axis=-1), sizes[..., 1:].sum(axis=-1))


def iou_micro_foreground(table: Counts) -> Values:
    """Intersection over union with the pixels of all classes but 0 pooled, shape (...)."""
    hits = _hits(table)[..., 1:].sum(axis=-1)
    sizes = (table.sum(axis=-1) + table.sum(axis=-2))[..., 1:].sum(axis=-1)
    return _ratio(hits, sizes - hits)


def dice_binary_foreground(table: Counts) -> Values:
    """Dice of "any class but 0" against background, shape (...): a wrong class is still right."""
    both = table[..., 1:, 1:].sum(axis=(-2, -1))
    truth = table[..., 1:, :].sum(axis=(-2, -1))
    predicted = table[..., :, 1:].sum(axis=(-2, -1))
    return _ratio(2 * both, truth + predicted)


def dice_generalised(table: Counts, power: int) -> Values:
    """Generalised Dice over the classes but 0, each weighted by its true size ** -power, (...).

    2 sum_c w_c TP_c / sum_c w_c (2 TP_c + FP_c + FN_c), w_c = 1 / (TP_c + FN_c)^power (Sudre et
    al. 2017: power 2). A class that does not occur in the truth has weight 0.
    """
    truth = table.sum(axis=-1)[..., 1:].astype(np.float64)
    sizes = truth + table.sum(axis=-2)[..., 1:]
    weights = _ratio(np.ones_like(truth), truth**power)
    weights = np.where(truth > 0, weights, 0)
    hits = _hits(table)[..., 1:]
    return _ratio(2 * (weights * hits).sum(axis=-1), (weights * sizes).sum(axis=-1))


def _hits(table: Counts) -> Counts:
    return np.asarray(np.diagonal(table, axis1=-2, axis2=-1))


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Values:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    out: Values = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
