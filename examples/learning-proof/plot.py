"""Draw results of `evaluate.py`: accuracies, ODCorr and RankMe over the steps of training.

python examples/learning-proof/plot.py results.json curves.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np  # noqa: E402
from matplotlib import axes, pyplot  # noqa: E402

PANELS = (
    ("linear", "linear probe, fixed test slides", True),
    ("linear_cv", "linear probe, 3 folds over slides", True),
    ("knn_cv", "20-NN, 3 folds over slides", True),
    ("odcorr", "ODCorr", False),
    ("rankme", "RankMe", False),
)
BASELINES = ("texture", "texture without contrast", "colour")
CHANCE = 0.25


def panel(axis: axes.Axes, results: Mapping[str, Any], key: str, title: str, score: bool) -> None:
    """One number over the steps: a thin line a seed, a thick one for their mean."""
    curves = [run["curve"] for run in results["runs"].values()]
    steps = [point["step"] for point in curves[0]]
    values = np.array([[point[key] for point in curve] for curve in curves])
    axis.plot(steps, values.T, color="tab:blue", alpha=0.35, linewidth=1)
    axis.plot(
        steps, values.mean(axis=0), color="tab:blue", linewidth=2.5, label="ViT, mean of seeds"
    )
    if score:
        for name, style in zip(BASELINES, ("-", "--", ":"), strict=True):
            value = results["handmade"][name][key]
            axis.axhline(value, color="tab:orange", linestyle=style, linewidth=1, label=name)
        axis.axhline(CHANCE, color="grey", linewidth=1, label="chance")
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)


def main() -> None:
    """Read, draw, write."""
    source, target = map(Path, sys.argv[1:3])
    results = json.loads(source.read_text())
    figure, places = pyplot.subplots(1, len(PANELS), figsize=(15, 3.2), layout="constrained")
    for axis, (key, title, score) in zip(places, PANELS, strict=True):
        panel(axis, results, key, title, score)
    places[0].legend(fontsize=6)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
