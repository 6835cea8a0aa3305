"""Gather the scores of run.sh: results.json, results.md, and one picture of all encoders.

python table.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathfm_cli import artifacts

NAMES = ("random-s16", "random-s8", "trained")
DECODERS = ("linear", "mask2former")
COLUMNS = ("dice_micro_foreground", "dice_mean_of_images", "iou_macro")
SHOWN = 3
"""Images of the picture: the first test images by name."""


def main(out: Path) -> None:
    """Read every result folder that is there."""
    found = {}
    for name in NAMES:
        for decoder in DECODERS:
            folder = out / f"{name}-{decoder}"
            if (folder / "scores.parquet").exists():
                found[f"{name}, {decoder}"] = _scores(folder)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "results.md").write_text(_table(found))
    print(_table(found))
    for decoder in DECODERS:
        _picture(out, decoder)


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
    }


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


def _picture(out: Path, decoder: str) -> None:
    """Rows: images; columns: image, labels, then the prediction of each encoder."""
    folders = [out / f"{name}-{decoder}" / "overlays" for name in NAMES]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        return
    rows = []
    for file in sorted(folders[0].iterdir())[:SHOWN]:
        panels = [np.asarray(Image.open(folder / file.name)) for folder in folders]
        width = panels[0].shape[1]
        # An overlay is image, labels and prediction with two gaps of 4 px.
        side = (width - 8) // 3
        start = 2 * (side + 4)
        rows.append(np.concatenate([panels[0], *(p[:, start - 4 :] for p in panels[1:])], axis=1))
    picture = np.concatenate(rows, axis=0)
    Image.fromarray(picture).save(out / f"{decoder}.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
