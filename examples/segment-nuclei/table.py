"""Gather the scores of run.sh: results.json, results.md, images.csv, a picture for each decoder.

python table.py DATA OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from pathfm_cli import artifacts
from pathfm_cli.tasks import masks, overlays

NAMES = ("random-s16", "random-s8", "trained")
DECODERS = ("linear", "mask2former")
COLUMNS = ("dice_micro_foreground", "dice_mean_of_images", "iou_macro")
SHOWN = 3
"""Images of the picture: the first test images by name."""


def main(data: Path, out: Path) -> None:
    """Read every result folder that is there."""
    found = {}
    for name in NAMES:
        for decoder in DECODERS:
            folder = out / f"{name}-{decoder}"
            if (folder / "scores.parquet").exists():
                found[f"{name}, {decoder}"] = _scores(folder)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "results.md").write_text(_table(found))
    _images(out, found).write_csv(out / "images.csv", float_precision=4)
    print(_table(found))
    for decoder in DECODERS:
        _picture(data / "patches" / "dsb2018" / "index.csv", out, decoder)


def _scores(folder: Path) -> dict[str, Any]:
    header = artifacts.read_header(folder / "scores.parquet")
    document = json.loads((folder / "scores.json").read_text())
    runs = {
        row["run"]: row["value"]
        for row in document["scores"]
        if row["metric"] == COLUMNS[0] and row["split"] == "test" and row["run"] is not None
    }
    return {
        "metrics": header.metrics,
        "runs": [runs[number] for number in document["kept"]],
        "converged": [one["converged"] for one in document["attempts"]],
        "train_dice": [one["train_dice"] for one in document["attempts"]],
        "constant_dice": document["attempts"][0]["constant_dice"],
    }


def _images(out: Path, found: Mapping[str, Any]) -> pl.DataFrame:
    """Dice of each test image, mean over the kept runs: a row an image, a column an encoder."""
    frames = []
    for name in found:
        table = pl.read_parquet(out / name.replace(", ", "-") / "scores.parquet")
        of_image = (pl.col("metric") == COLUMNS[0]) & pl.col("image").is_not_null()
        frames.append(table.filter(of_image).select("image", pl.col("value").alias(name)))
    return pl.concat(frames, how="align").sort("image")


def _table(found: dict[str, Any]) -> str:
    lines = [
        "| encoder, decoder | runs | Dice micro ± sd | 95 % of images | of windows | "
        "mean of images | mIoU | converged |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        m = one["metrics"]
        headline = COLUMNS[0]
        lines.append(
            f"| {name} | {' '.join(f'{value:.3f}' for value in one['runs'])} "
            f"| **{m[headline]:.3f}** ± {m[f'{headline}_std']:.3f} "
            f"| {m[f'{headline}_low']:.3f} to {m[f'{headline}_high']:.3f} "
            f"| {m[f'{headline}:windows']:.3f} | {m[COLUMNS[1]]:.3f} | {m[COLUMNS[2]]:.3f} "
            f"| {sum(one['converged'])} of {len(one['converged'])} |"
        )
    if found:
        share = next(iter(found.values()))["metrics"]["foreground_share"]
        lines.append(f"\nAll background: 0. All foreground: {2 * share / (1 + share):.3f}.")
    return "\n".join(lines) + "\n"


def _picture(index: Path, out: Path, decoder: str) -> None:
    """Rows: images; columns: image, labels, then the prediction with each encoder."""
    folders = [out / f"{name}-{decoder}" / "predictions" for name in NAMES]
    folders = [folder for folder in folders if folder.is_dir()]
    shown = [item for item in masks.read_table(index) if item.split == "test"][:SHOWN]
    rows = [
        overlays.panels(
            masks.read(item, "objects"),
            [np.asarray(Image.open(folder / item.file_name)) for folder in folders],
        )
        for item in shown
    ]
    Image.fromarray(np.concatenate(rows)).save(out / f"{decoder}.jpg", quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
