"""Pictures of embeddings: their first three principal components as colours on the slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.tasks import features
from pathfm_cli.wsi import pyramid

SIDE_PX = 900
"""Longest side of one panel."""
POSITIONS = ("slide", "x_px0", "y_px0", "mpp")


def pca_map(embeddings: Path, picture: Path) -> None:
    """Draw the slide with most patches beside its patches coloured by PCA, as PNG.

    The three components fill red, green and blue, each between its 2nd and 98th percentile.

    Raises:
        errors.InputError: not embeddings of slide patches, fewer than 4 of them, or patch tokens.
    """
    features.refuse_tokens(embeddings, pl.read_parquet_schema(embeddings).get("embedding"))
    table = artifacts.read_table(embeddings, "embeddings")
    if any(name not in table.frame.columns for name in POSITIONS) or "slides" not in table.attached:
        raise errors.InputError(
            f"{embeddings} holds no positions on slides.",
            "embed patches of a slide: pathfm sample t.parquet --grid | pathfm embed ...",
        )
    frame = table.frame.filter(pl.col("embedding").is_not_null())
    if len(frame) < 4:
        raise errors.InputError(f"{embeddings} holds {len(frame)} patches; a PCA needs 4.")
    name = frame["slide"].value_counts(sort=True)["slide"][0]
    frame = frame.with_columns(colour=pca_colours(frame["embedding"].to_numpy()))
    row = table.attached["slides"].filter(pl.col("slide") == name).row(0, named=True)
    slide = pyramid.Slide.from_row(row)
    thumbnail = _thumbnail(slide, table)
    scale = thumbnail.width / slide.width_px0
    coloured = Image.new("RGB", thumbnail.size, "white")
    draw = ImageDraw.Draw(coloured)
    here = frame.filter(pl.col("slide") == name)
    side = float(table.header.settings["size_px"]) / slide.mpp * scale
    for x, y, mpp, colour in here.select("x_px0", "y_px0", "mpp", "colour").iter_rows():
        box = (x * scale, y * scale, x * scale + side * mpp - 1, y * scale + side * mpp - 1)
        draw.rectangle(box, fill=tuple(int(value) for value in colour))
    panels = Image.new("RGB", (2 * thumbnail.width + 10, thumbnail.height), "white")
    panels.paste(thumbnail, (0, 0))
    panels.paste(coloured, (thumbnail.width + 10, 0))
    with disk.atomic(picture) as temporary:
        panels.save(temporary, format="PNG")


def pca_colours(features: np.ndarray) -> pl.Series:
    """Colours (N, 3) uint8 from features (N, K): three principal components, stretched."""
    centred = features.astype(np.float64) - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    scores = centred @ axes[:3].T
    low, high = np.percentile(scores, [2, 98], axis=0)
    stretched = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return pl.Series((255 * stretched).astype(np.uint8), dtype=pl.Array(pl.UInt8, 3))


def _thumbnail(slide: pyramid.Slide, table: artifacts.Table) -> Image.Image:
    mpp = slide.mpp * max(slide.width_px0, slide.height_px0) / SIDE_PX
    reader = pyramid.Reader(table.file("tiles"))
    return Image.fromarray(reader.read_thumbnail(slide, max(mpp, slide.mpp)))
