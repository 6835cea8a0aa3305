"""The scores of a segmentation: every definition of Dice under its own name.

`dice_micro_foreground` (the headline) pools the pixels of all images and of all classes but
background; `dice_macro_foreground` is the mean of the pooled Dice of each of these classes;
`dice_mean_of_images` the mean over images of the micro foreground Dice of each. A class that occurs
in neither truth nor prediction, and an image without foreground in either, takes no part.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from pathfm_cli import errors
from pathfm_cli.tasks import masks, metrics, scores

HEADLINE = "dice_micro_foreground"
SCHEMA = {**scores.SCHEMA, "image": pl.String, "error": pl.String}
"""The long table; `image` names the test image of a row, null for all of them together."""
LABELS = {
    HEADLINE: "Dice, micro over foreground",
    "dice_macro_foreground": "Dice, mean over foreground classes",
    "dice_mean_of_images": "Dice, mean over images",
    "iou_macro": "IoU, mean over classes",
}

Row = tuple[str, str, int | None, float | None, str | None, str | None]
"""The columns of `SCHEMA`."""


def table(rows: Iterable[Row]) -> pl.DataFrame:
    """The long table."""
    return pl.DataFrame(list(rows), SCHEMA, orient="row")


def rows(tables: Mapping[str, metrics.Counts], classes: Sequence[str]) -> list[Row]:
    """All scores of the pooled pixels, then the headline of every image.

    Args:
        tables: (C, C) confusion table by image.
        classes: names; position 0 is background.

    Raises:
        errors.InputError: there is no image, or none has foreground.
    """
    if not tables:
        raise errors.InputError("No image of test can be used.", "look at the paths in the table")
    pooled = np.sum(list(tables.values()), axis=0)
    if not pooled[1:].any():
        raise errors.InputError("The label maps of test hold no foreground.", "0 is background")
    images = {name: float(metrics.dice_micro_foreground(t)) for name, t in tables.items()}
    of_class, iou = metrics.dice(pooled), metrics.iou(pooled)
    named = {
        HEADLINE: float(metrics.dice_micro_foreground(pooled)),
        "dice_macro_foreground": float(np.nanmean(of_class[1:])),
        "dice_mean_of_images": statistics.fmean(v for v in images.values() if not math.isnan(v)),
        "iou_macro": float(np.nanmean(iou)),
        "pixel_accuracy": float(metrics.accuracy(pooled)),
        "foreground_share": float(pooled[1:].sum() / pooled.sum()),
    }
    for i, name in enumerate(classes):
        named |= {f"dice:{name}": float(of_class[i]), f"iou:{name}": float(iou[i])}
    pooled_rows: list[Row] = [
        (name, "test", None, value, None, None)
        for name, value in named.items()
        if not math.isnan(value)
    ]
    image_rows: list[Row] = [
        (HEADLINE, "test", None, None if math.isnan(value) else value, name, None)
        for name, value in images.items()
    ]
    return pooled_rows + image_rows


def failure(item: masks.Item, reason: str) -> Row:
    """The row of an image that could not be used."""
    return "image", item.split, None, None, item.id, reason


def numbers(found: Iterable[Row]) -> dict[str, float]:
    """The flat numbers of a record: everything measured on the pooled pixels."""
    return {n: value for n, _, _, value, image, _ in found if image is None and value is not None}


def lines(found: Mapping[str, float]) -> list[str]:
    """What a person sees."""
    return [f"{label:<36}{found[name]:.4f}" for name, label in LABELS.items()]
