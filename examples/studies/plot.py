"""Draw what a study found.

python examples/studies/plot.py curves results.json plot.png     # scores over training (figure 1)
python examples/studies/plot.py table results.json plot.png      # scores of each encoder, curves
python examples/studies/plot.py scatter results.json plot.png    # score, ODCorr, RankMe (figure 6)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import axes, figure, pyplot  # noqa: E402
from scipy import stats  # noqa: E402

LOOKS = {
    "linear": "linear probe, balanced accuracy",
    "knn": "20-NN, balanced accuracy",
    "odcorr": "ODCorr, training patches",
    "rankme": "RankMe, training patches",
}
TITLES = {"balanced_accuracy": "balanced accuracy", "odcorr": "ODCorr", "rankme": "RankMe"}
TITLES["accuracy"] = "top-1 accuracy"
Results = Mapping[str, Any]


def curves(results: Results, score: str) -> figure.Figure:
    """One panel a number that looks at the teacher measured, a line a run."""
    drawn, places = pyplot.subplots(1, len(LOOKS), figsize=(14, 3.3), layout="constrained")
    for axis, (key, title) in zip(places, LOOKS.items(), strict=True):
        _over_steps(axis, results, key, title)
    places[0].legend(fontsize=7)
    return drawn


def table(results: Results, score: str) -> figure.Figure:
    """Scores with intervals by encoder, a panel a task; beside them two curves over training."""
    tasks = list(dict.fromkeys(row["task"] for row in results["rows"]))
    count = len(tasks) + 2
    drawn, places = pyplot.subplots(1, count, figsize=(3.9 * count, 3.3), layout="constrained")
    colours = {name: f"C{number}" for number, name in enumerate(results["curves"])}
    for axis, task in zip(places, tasks, strict=False):
        rows = [row for row in results["rows"] if row["task"] == task]
        for place, row in enumerate(rows):
            value = row[score]
            ends = (row.get(f"{score}_low", value), row.get(f"{score}_high", value))
            colour = colours.get(row["name"], "grey")
            axis.errorbar(
                place, value, [[value - ends[0]], [ends[1] - value]], fmt="o", color=colour
            )
        axis.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=25, fontsize=8)
        axis.set_title(f"{task}, {TITLES[score]}, 95 % interval", fontsize=9)
        axis.tick_params(labelsize=8)
    for axis, key in zip(places[len(tasks) :], ("linear", "odcorr"), strict=True):
        _over_steps(axis, results, key, LOOKS[key])
    places[-2].legend(fontsize=7)
    return drawn


def scatter(results: Results, score: str) -> figure.Figure:
    """A row a task: score over ODCorr, score over RankMe, RankMe over ODCorr; Spearman's rho."""
    tasks = list(dict.fromkeys(row["task"] for row in results["rows"]))
    pairs = (("odcorr", score), ("rankme", score), ("odcorr", "rankme"))
    size = (11, 3.3 * len(tasks))
    drawn, places = pyplot.subplots(
        len(tasks), 3, figsize=size, layout="constrained", squeeze=False
    )
    for line, task in zip(places, tasks, strict=True):
        rows = [row for row in results["rows"] if row["task"] == task]
        widths = sorted({int(row["k"]) for row in rows})
        for axis, (x, y) in zip(line, pairs, strict=True):
            for number, width in enumerate(widths):
                some = [row for row in rows if row["k"] == width]
                at = [[row[key] for row in some] for key in (x, y)]
                axis.scatter(*at, color=f"C{number}", s=18, label=f"{width} wide")
            axis.set_xlabel(TITLES[x], fontsize=8)
            axis.set_ylabel(TITLES[y], fontsize=8)
            axis.set_title(f"{task}: {_said(rows, x, y)}", fontsize=9)
            axis.tick_params(labelsize=8)
        line[0].legend(fontsize=7)
    return drawn


def spearman(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> float | None:
    """Spearman's rank correlation; None for fewer than three points or a constant."""
    values = [[row[key] for row in rows] for key in (x, y)]
    if len(rows) < 3 or any(len(set(part)) == 1 for part in values):
        return None
    return float(stats.spearmanr(*values).statistic)


def _said(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> str:
    rho = spearman(rows, x, y)
    return f"n = {len(rows)}" + (f", Spearman {rho:+.2f}" if rho is not None else "")


def _over_steps(axis: axes.Axes, results: Results, key: str, title: str) -> None:
    for number, (name, looks) in enumerate(results["curves"].items()):
        points = [(look["step"], look[key]) for look in looks if key in look]
        axis.plot(*zip(*points, strict=True), "o-", color=f"C{number}", markersize=3, label=name)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)


def main() -> None:
    """Parse, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("curves", "table", "scatter"))
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--score", default="balanced_accuracy", choices=("balanced_accuracy", "accuracy")
    )
    given = parser.parse_args()
    drawn = {"curves": curves, "table": table, "scatter": scatter}[given.kind]
    drawn(json.loads(given.results.read_text()), given.score).savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
