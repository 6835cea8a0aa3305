"""Pictures that a run keeps of itself: views as the networks get them, neighbours of patches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pathfm_cli import disk
from pathfm_cli.pretrain import augment

PATCHES = 4
"""Patches, a row each, on the sheet of views."""
QUERIES, NEAREST = 6, 6
"""Patches of the fixed set, a row each, and their neighbours on the other sheet."""
THUMBNAIL_PX = 96
GAP_PX = 4
QUALITY = 88

Image8 = npt.NDArray[np.uint8]


def crops(views: list[torch.Tensor], picture: Path) -> None:
    """Draw the views of the first patches as JPEG: a row a patch, global views before local ones.

    Args:
        views: as `augment.crops` makes them: (V * B, 3, S, S), normalised, view by view; the global
            ones first.
        picture: the file.
    """
    batch = len(views[0]) // 2
    rows = []
    for patch in range(min(PATCHES, batch)):
        tiles = [tile for group in views for tile in group[patch::batch]]
        rows.append([_pixels(tile) for tile in tiles])
    _save(_grid(rows), picture)


def neighbours(
    vectors: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    read: Callable[[int], Image8],
    picture: Path,
) -> None:
    """Draw patches and those most like them by cosine, as JPEG: a row a query, nearest first.

    Args:
        vectors: (N, K) finite.
        rows: (N,) which image each is of.
        read: pixels (H, W, 3) of an image.
        picture: the file.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    queries = np.unique(np.linspace(0, len(units) - 1, QUERIES).astype(int))
    likeness = units[queries] @ units.T
    likeness[np.arange(len(queries)), queries] = np.inf
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : NEAREST + 1]
    _save(_grid([[_thumbnail(read(int(rows[i]))) for i in row] for row in nearest]), picture)


def _pixels(view: torch.Tensor) -> Image.Image:
    """A normalised view (3, S, S) as it looked before."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.MEAN, augment.STD))
    values = (view.detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(values.round().byte().permute(1, 2, 0).numpy())


def _thumbnail(pixels: Image8) -> Image.Image:
    return Image.fromarray(pixels).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)


def _grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of pictures on white, aligned at the top left."""
    height = max(tile.height for row in rows for tile in row) + GAP_PX
    width = max(sum(tile.width + GAP_PX for tile in row) for row in rows)
    sheet = Image.new("RGB", (width - GAP_PX, height * len(rows) - GAP_PX), "white")
    for number, row in enumerate(rows):
        left = 0
        for tile in row:
            sheet.paste(tile, (left, number * height))
            left += tile.width + GAP_PX
    return sheet


def _save(sheet: Image.Image, picture: Path) -> None:
    with disk.atomic(picture) as temporary:
        sheet.save(temporary, format="JPEG", quality=QUALITY)
