"""The scores of a segmentation: every definition of Dice under its own name.

All come from integer confusion tables, one an image (or window) and run. Those of `POOLED` add the
tables of all images first; those of `OF_IMAGES` score each image and take the mean over images. A
class that occurs in neither truth nor prediction takes no part, nor does an image without one that
does. docs/segment.md has the formulas.
Legend: N = images, R = runs, C = classes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import errors
from pathfm_cli.data import draw
from pathfm_cli.tasks import bootstrap, masks, metrics, scores

HEADLINE = "dice_micro_foreground"
STITCHED, WINDOWS = "test", "test windows"
"""What was scored: whole images, their windows stitched, or every window by itself."""
PURPOSE = 110
"""Of the random numbers of the bootstrap."""
SCHEMA = {**scores.SCHEMA, "image": pl.String, "error": pl.String}
"""The long table; `image` names the test image of a row, null for all of them together."""
Values = npt.NDArray[np.float64]


def _mean(values: Values) -> Values:
    """Mean over the last axis of what is not NaN; NaN if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found: Values = np.nanmean(values, axis=-1)
    return found


def _where_true(table: metrics.Counts) -> Values:
    """Mean Dice over the foreground classes that occur in the truth."""
    there = table.sum(axis=-1)[..., 1:] > 0
    return _mean(np.where(there, metrics.dice(table)[..., 1:], np.nan))


POOLED: Mapping[str, Callable[[metrics.Counts], Values]] = {
    HEADLINE: metrics.dice_micro_foreground,
    "dice_macro_foreground": lambda table: _mean(metrics.dice(table)[..., 1:]),
    "dice_binary_foreground": metrics.dice_binary_foreground,
    "dice_generalised_square": lambda table: metrics.dice_generalised(table, 2),
    "dice_generalised_linear": lambda table: metrics.dice_generalised(table, 1),
    "iou_macro": lambda table: _mean(metrics.iou(table)),
    "iou_macro_foreground": lambda table: _mean(metrics.iou(table)[..., 1:]),
    "iou_micro_foreground": metrics.iou_micro_foreground,
    "pixel_accuracy": metrics.accuracy,
}
"""Name to a function of the pooled table (..., C, C)."""
OF_IMAGES: Mapping[str, Callable[[metrics.Counts], Values]] = {
    "dice_mean_of_images": metrics.dice_micro_foreground,
    "dice_macro_of_images": lambda table: _mean(metrics.dice(table)[..., 1:]),
    "dice_monai": _where_true,
}
"""Name to a function of an image's table; the score is the mean over images."""
LABELS = {
    HEADLINE: "Dice, micro over foreground",
    "dice_macro_foreground": "Dice, mean over foreground classes",
    "dice_binary_foreground": "Dice, foreground against background",
    "dice_generalised_square": "Dice, generalised, weights 1/size^2",
    "dice_generalised_linear": "Dice, generalised, weights 1/size",
    "dice_mean_of_images": "Dice, micro, mean over images",
    "dice_macro_of_images": "Dice, mean over images and classes",
    "dice_monai": "Dice, the same where the class is true",
    "iou_macro": "IoU, mean over classes",
}

Row = tuple[str, str, int | None, float | None, str | None, str | None]
"""The columns of `SCHEMA`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tables:
    """Confusion tables of the test images by every run.

    Attributes:
        stitched: by image, (R, C, C).
        windows: by image, (windows, R, C, C).
    """

    stitched: dict[str, metrics.Counts]
    windows: dict[str, metrics.Counts]


def table(rows: Iterable[Row]) -> pl.DataFrame:
    """The long table."""
    return pl.DataFrame(list(rows), SCHEMA, orient="row")


def measure(tables: metrics.Counts, weights: npt.NDArray[np.int64]) -> dict[str, Values]:
    """Every score of all runs, each image counted as often as its weight says.

    Args:
        tables: (N, R, C, C).
        weights: (N,), how often an image counts.

    Returns:
        (R,) by name; NaN where nothing can be measured.
    """
    pooled = np.tensordot(weights, tables, axes=1)
    found = {name: score(pooled) for name, score in POOLED.items()}
    for name, score in OF_IMAGES.items():
        found[name] = _weighted(score(tables), weights)
    return found


def rows(tables: Tables, classes: Sequence[str], kept: Sequence[int], seed: int) -> list[Row]:
    """All scores: of each run, their mean over the runs that are kept, intervals, each image's.

    Args:
        tables: of the test images.
        classes: names; position 0 is background.
        kept: numbers of the runs whose mean is the result.
        seed: of the bootstrap.

    Raises:
        errors.InputError: there is no image, or none has foreground.
    """
    if not tables.stitched:
        raise errors.InputError("No image of test can be used.", "look at the paths in the table")
    whole = np.stack(list(tables.stitched.values()))
    if not whole.sum(axis=(0, 1))[1:].any():
        raise errors.InputError("The label maps of test hold no foreground.", "0 is background")
    windows = np.concatenate(list(tables.windows.values()))
    found: list[Row] = []
    for split, counts in ((STITCHED, whole), (WINDOWS, windows)):
        values = measure(counts, np.ones(len(counts), dtype=np.int64))
        pooled = counts.sum(axis=0)
        for kind, of_class in (("dice", metrics.dice(pooled)), ("iou", metrics.iou(pooled))):
            values |= {f"{kind}:{c}": of_class[:, i] for i, c in enumerate(classes)}
        found += [row for name, each in values.items() for row in _over(name, split, each, kept)]
    found += _intervals(whole, kept, seed)
    truth = whole[:, 0].sum(axis=(0, 2))
    found.append(("foreground_share", STITCHED, None, float(truth[1:].sum() / truth.sum()), *_NONE))
    of_image = metrics.dice_micro_foreground(whole[:, list(kept)]).mean(axis=1)
    for name, value in zip(tables.stitched, of_image, strict=True):
        found.append((HEADLINE, STITCHED, None, _plain(value), name, None))
    return found


def failure(item: masks.Item, reason: str) -> Row:
    """The row of an image that could not be used."""
    return "image", item.split, None, None, item.id, reason


def numbers(found: Iterable[Row]) -> dict[str, float]:
    """The flat numbers of a record: means over the kept runs; of windows only the definitions."""
    flat = {}
    for name, split, run, value, image, _ in found:
        if run is not None or image is not None or value is None:
            continue
        if split == STITCHED:
            flat[name] = value
        elif name in POOLED or name in OF_IMAGES:
            flat[f"{name}:windows"] = value
    return flat


def lines(found: Mapping[str, float]) -> list[str]:
    """What a person sees: each definition stitched, its interval, and by windows."""
    text = [f"{'':<40}{'stitched':>9}{'sd':>8}{'95 % interval':>18}{'windows':>9}"]
    for name, label in LABELS.items():
        if name not in found:
            continue
        std, low, high = (found.get(f"{name}_{end}") for end in ("std", "low", "high"))
        interval = "-" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        windows = found.get(f"{name}:windows", math.nan)
        text.append(
            f"{label:<40}{found[name]:>9.4f}{'-' if std is None else f'{std:.4f}':>8}"
            f"{interval:>18}{windows:>9.4f}"
        )
    return text


_NONE = (None, None)


def _over(name: str, split: str, values: Values, kept: Sequence[int]) -> list[Row]:
    """A score of every run, and mean and deviation of those that are kept."""
    found: list[Row] = [
        (name, split, run, float(value), *_NONE)
        for run, value in enumerate(values)
        if not math.isnan(value)
    ]
    chosen = [float(values[run]) for run in kept]
    if chosen and not any(map(math.isnan, chosen)):
        found.append((name, split, None, statistics.fmean(chosen), *_NONE))
        if len(chosen) > 1:
            found.append((f"{name}_std", split, None, statistics.stdev(chosen), *_NONE))
    return found


def _intervals(whole: metrics.Counts, kept: Sequence[int], seed: int) -> list[Row]:
    """Bootstrap over images of the mean over the kept runs; none for a single image."""
    if len(whole) < 2 or not kept:
        return []
    chosen, rng = whole[:, list(kept)], draw.rng(seed, 0, PURPOSE)
    drawn: dict[str, list[float]] = {}
    for _ in range(bootstrap.DRAWS):
        weights = np.bincount(rng.integers(len(whole), size=len(whole)), minlength=len(whole))
        for name, values in measure(chosen, weights).items():
            drawn.setdefault(name, []).append(float(values.mean()))
    tail = (1 - bootstrap.LEVEL) / 2
    found: list[Row] = []
    for name, each in drawn.items():
        if known := [value for value in each if not math.isnan(value)]:
            low, high = np.quantile(known, [tail, 1 - tail])
            found.append((f"{name}_low", STITCHED, None, float(low), *_NONE))
            found.append((f"{name}_high", STITCHED, None, float(high), *_NONE))
    return found


def _weighted(values_NR: Values, weights: npt.NDArray[np.int64]) -> Values:
    """Weighted mean over images of what is not NaN."""
    shares = np.where(np.isnan(values_NR), 0, weights[:, None])
    sums, counts = (shares * np.nan_to_num(values_NR)).sum(axis=0), shares.sum(axis=0)
    means: Values = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
