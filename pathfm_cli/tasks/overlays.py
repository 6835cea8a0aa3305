"""Pictures of a segmentation: label maps as PNG; image, labels and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as pillow

from pathfm_cli import disk
from pathfm_cli.tasks import masks

COLOURS = np.array(
    [(0, 0, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (240, 228, 66), (204, 121, 167)],
    dtype=np.float32,
)
"""Okabe and Ito's palette, readable without red-green vision, what is unlike haematoxylin and eosin
first; classes beyond it take turns."""
GAP_PX = 4


def write_map(path: Path, predicted: masks.Pixels) -> None:
    """Write a label map as an 8-bit PNG whose grey values are the classes."""
    with disk.atomic(path) as temporary:
        pillow.fromarray(predicted).save(temporary, format="png")


def write_overlay(path: Path, item: masks.Labelled, predicted: masks.Pixels) -> None:
    """Write image, labels and prediction side by side (as Figure 3 of the paper)."""
    with disk.atomic(path) as temporary:
        pillow.fromarray(panels(item, [predicted])).save(temporary, format="png")


def panels(item: masks.Labelled, predicted: Sequence[masks.Pixels]) -> masks.Pixels:
    """Image, labels and predictions (H, W) of any number side by side, `GAP_PX` of white between.

    Returns:
        (H, panels x W + gaps, 3) uint8.
    """
    gap = np.full((item.image.shape[0], GAP_PX, 3), 255, dtype=np.uint8)
    parts = [item.image]
    for label in (item.label, *predicted):
        parts += [gap, _tinted(item.image, label)]
    return np.concatenate(parts, axis=1)


def colour_of(number: int) -> list[int]:
    """Red, green and blue of a class, 0..255."""
    place = 0 if number == 0 else (number - 1) % (len(COLOURS) - 1) + 1
    return [int(value) for value in COLOURS[place]]


def _tinted(image: masks.Pixels, label: masks.Pixels) -> masks.Pixels:
    """Lay the colours of the classes over an image; background stays."""
    picked = np.where(label == 0, 0, (label.astype(np.intp) - 1) % (len(COLOURS) - 1) + 1)
    mixed = 0.5 * image + 0.5 * COLOURS[picked]
    return np.where((label == 0)[..., None], image, mixed.astype(np.uint8))
