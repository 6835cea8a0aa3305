"""Draw results of `curves.py` as the paper's figure 4: ODCorr and two linear probes over steps.

python examples/dino-vs-dinov2/plot.py curves.json curves.png

Blue: DINO's runs. Orange: DINOv2's, of all learning rates. Lines are means, bands the whole range.
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

LABELS = {"dino": "DINO", "dinov2": "DINOv2"}
PANELS = (
    ("odcorr", "odcorr", "ODCorr, training patches (lower: more distinct)"),
    ("probes", "organs", "organ4, linear probe, balanced accuracy"),
    ("probes", "nuclei", "nuclei, linear probe, average precision"),
)


def panel(axis: axes.Axes, results: Mapping[str, Any], table: str, key: str, title: str) -> None:
    """One number over the steps, for both methods."""
    for method, colour in (("dino", "tab:blue"), ("dinov2", "tab:orange")):
        runs = [run[table] for name, run in results.items() if name.split("-")[0] == method]
        steps = [point["step"] for point in runs[0]]
        values = np.array([[point[key] for point in run] for run in runs])
        label = f"{LABELS[method]}: {len(runs)} runs" if len(runs) > 1 else LABELS[method]
        axis.plot(steps, values.mean(axis=0), "o-", color=colour, markersize=3, label=label)
        if len(runs) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axis.fill_between(steps, low, high, color=colour, alpha=0.25)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)


def main() -> None:
    """Read, draw, write."""
    source, target = map(Path, sys.argv[1:3])
    results = json.loads(source.read_text())
    figure, places = pyplot.subplots(1, len(PANELS), figsize=(12, 3.4), layout="constrained")
    for axis, (table, key, title) in zip(places, PANELS, strict=True):
        panel(axis, results, table, key, title)
    places[0].legend(fontsize=8)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
