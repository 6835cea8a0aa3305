"""Score runs of `recipe.toml` before, during and after training, beside what needs no training.

python examples/learning-proof/evaluate.py DATA OUT/seed-* -o results.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import nuclei
import numpy as np
import organ4
import texture
from numpy.typing import NDArray

from pathfm_cli import artifacts
from pathfm_cli.model import export, weights
from pathfm_cli.pretrain import folder, networks, recipe

BATCH = 50
Scores = dict[str, float]


def encoder_scores(model: Path, data: organ4.Organ4, dsb2018: Path | None) -> Scores:
    """Scores of an exported encoder on organ4 and, with `dsb2018`, on nuclei."""
    encoder = weights.load(model, device="cpu", precision="fp32", image_size_px=organ4.SIDE_PX)
    starts = range(0, len(data.images), BATCH)
    parts = [encoder.encode(data.images[at : at + BATCH]).numpy() for at in starts]
    found = organ4.scores(data, np.concatenate(parts))
    if dsb2018:
        found["nuclei_ap"] = nuclei.average_precision(dsb2018, nuclei.tokens_of(encoder))
    return found


def untrained(run: Path, where: Path, **changes: str) -> Path:
    """Export the encoder that a run started from, its recipe changed by `model.KEY=VALUE`."""
    changed = [f"model.{key}={value}" for key, value in changes.items()]
    settings = recipe.load(str(run / folder.CONFIG), changed)
    info = dataclasses.replace(export.read_info(run), step=0, input=settings.model.input)
    _, teacher = networks.pair(settings)
    export.export(where, teacher.backbone, info, artifacts.Header(kind="checkpoint"))
    return where


def run_scores(run: Path, data: organ4.Organ4, dsb2018: Path) -> dict[str, object]:
    """A run before, on the way and after, and its encoder without training on plain colours."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = untrained(run, Path(temporary) / "fresh")
        colours = untrained(run, Path(temporary) / "colours", input="rgb")
        before = encoder_scores(fresh, data, dsb2018)
        before_rgb = encoder_scores(colours, data, dsb2018)
    exports = sorted((run / folder.EXPORTS).glob("step-*"))
    curve = [{"step": 0, **before}]
    curve += [
        {"step": export.read_info(path).step, **encoder_scores(path, data, None)}
        for path in exports
    ]
    return {
        "steps": export.read_info(run).step,
        "before_rgb": before_rgb,
        "before": before,
        "after": encoder_scores(run, data, dsb2018),
        "curve": curve,
    }


def handmade(data: organ4.Organ4) -> dict[str, Scores]:
    """Descriptions that need no training."""
    pixels: NDArray[np.uint8] = data.images
    return {
        "colour": organ4.scores(data, texture.colour(pixels)),
        "texture": organ4.scores(data, texture.texture(pixels, contrast=True)),
        "texture without contrast": organ4.scores(data, texture.texture(pixels, contrast=False)),
    }


def table(results: Mapping[str, object]) -> str:
    """The scores as Markdown, mean and deviation over runs."""
    runs: Sequence[dict[str, Scores]] = list(results["runs"].values())
    rows = {name: [scores] for name, scores in results["handmade"].items()}
    rows["fresh ViT on colours"] = [run["before_rgb"] for run in runs]
    rows["fresh ViT on density (before)"] = [run["before"] for run in runs]
    rows["trained ViT (after)"] = [run["after"] for run in runs]
    columns = list(runs[0]["after"])
    lines = ["| embedding | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, scored in rows.items():
        cells = [_cell([one[key] for one in scored if key in one]) for key in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    digits = 1 if max(values) > 1 else 3
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def main() -> None:
    """Parse, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with patches/organ4 and patches/dsb2018")
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON; a .md beside it")
    arguments = parser.parse_args()
    patches = arguments.data / "patches"
    data = organ4.read(patches / "organ4")
    results: dict[str, object] = {"handmade": handmade(data), "runs": {}}
    for run in arguments.runs:
        results["runs"][run.name] = run_scores(run, data, patches / "dsb2018")
    rounded = json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4))
    arguments.out.write_text(json.dumps(rounded, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(rounded))


if __name__ == "__main__":
    main()
