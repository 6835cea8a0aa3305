"""Gather what a study measured: scores of its encoders, and their curves over training.

python examples/studies/results.py OUT NAME... -o results.json

OUT/scores/TASK/NAME holds what `pathfm probe` and `pathfm odcorr` wrote, OUT/runs/NAME a run with
its looks at the teacher. Beside the JSON a Markdown table of the same name is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts

SCORES = ("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high", "accuracy")
LABEL_FREE = ("odcorr", "rankme", "alpha", "k")
LOOKED = ("step", "linear", "knn", "odcorr", "rankme")
Row = dict[str, Any]


def rows(out: Path, names: Sequence[str]) -> list[Row]:
    """One row an encoder and task, in the order of `names`."""
    found = []
    for task in sorted(path.name for path in (out / "scores").iterdir()):
        for name in names:
            at = out / "scores" / task / name
            row: Row = {"name": name, "task": task}
            for part, wanted in (("probe", SCORES), ("odcorr", LABEL_FREE)):
                metrics = artifacts.read_header(at / part / "scores.parquet", "scores").metrics
                row |= {key: metrics[key] for key in wanted if key in metrics}
            found.append(row)
    return found


def curve(run: Path) -> list[Row]:
    """What each look at the teacher of a run saw; empty without looks."""
    try:
        lines = (run / "watch.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    looks = [json.loads(line) for line in lines]
    return [{key: look[key] for key in LOOKED if key in look} for look in looks]


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The scores as a table: balanced accuracy with its interval, ODCorr, RankMe, alpha."""
    lines = ["| encoder | task | balanced accuracy | 95 % interval | ODCorr | RankMe | alpha |"]
    lines.append("| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for row in found:
        low, high = (row.get(f"balanced_accuracy_{end}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        alpha = f"{row['alpha']:.2f}" if "alpha" in row else ""
        lines.append(
            f"| {row['name']} | {row['task']} | {row['balanced_accuracy']:.3f} | {interval} "
            f"| {row['odcorr']:.3f} | {row['rankme']:.1f} | {alpha} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, gather, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("names", nargs="+", help="its encoders, in order")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    found = rows(given.study, given.names)
    curves = {name: curve(given.study / "runs" / name) for name in given.names}
    results = {"rows": found, "curves": {name: looks for name, looks in curves.items() if looks}}
    rounded = json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4))
    given.out.write_text(json.dumps(rounded, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(markdown(rounded["rows"]))


if __name__ == "__main__":
    main()
