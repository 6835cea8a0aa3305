"""The same embeddings and protocol through pathfm and through kaiko-eva's own offline fit.

python benchmarks/eva_compare.py --eva-python OTHER/bin/python [--organ4 E.parquet] [--json]

OTHER is an environment with kaiko-eva 0.4 (`pip install kaiko-eva`); it never shares one with
pathfm. Three tasks of made-up features, easy to hard, with two to nine classes, and a file of
embeddings with labels and splits. Both train by `--protocol eva-0.4` cut to `--steps`, from the
same first weights; the order of the data is each one's own. `--only pcam` makes as many features
as PCam has (327,680 files for kaiko-eva); give it `--steps` of whole epochs, 1,024 each.
`cpu_ratio` is kaiko-eva's processor time for a step of one run over ours, validations included;
without `val`, `test` chooses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from pathfm_cli.tasks import features, heads, labelled, metrics, protocols

FIT = Path(__file__).with_name("eva_fit.py")
MADE = {"easy": (4, 0.35), "middle": (9, 0.25), "hard": (2, 0.12)}
"""Classes, and distance of their centres."""
ROWS = {"train": 2048, "val": 512, "test": 4096}
WIDTH = 64
PCAM = {"train": 262_144, "val": 32_768, "test": 32_768}
PCAM_CLASSES, PCAM_WIDTH = 2, 384
Parts = dict[str, tuple[torch.Tensor, torch.Tensor]]


def made(classes: int, distance: float, rows: dict[str, int], width: int) -> Parts:
    """Points of unit variance around one centre a class."""
    rng = np.random.default_rng(classes)
    centres = rng.standard_normal((classes, width)) * distance
    parts = {}
    for split, count in rows.items():
        labels = rng.integers(0, classes, count)
        points = centres[labels] + rng.standard_normal((count, width))
        parts[split] = torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)
    return parts


def loaded(path: Path) -> Parts:
    """A file of embeddings; `test` stands in for a missing `val`."""
    source = features.open_features(path)
    roles = {role: role for role in labelled.ROLES}
    data = labelled.prepare(source, roles)
    parts = {
        role: (torch.from_numpy(source.matrix(rows)), torch.from_numpy(data.labels[role]))
        for role, rows in data.rows.items()
    }
    return {"val": parts["test"], **parts}


def ours(parts: Parts, classes: int, protocol: protocols.Protocol, runs: int) -> dict[str, object]:
    """Scores by run, and what they cost."""
    start = time.perf_counter(), time.process_time()
    fit = heads.fit(
        parts["train"], parts["val"], classes, protocol, [heads.Run(seed) for seed in range(runs)]
    )
    scores = metrics.balanced_accuracy(fit.heads.confusion(*parts["test"])).tolist()
    spent = time.perf_counter() - start[0], time.process_time() - start[1]
    steps = sum(fit.stopped_step)
    return {"scores": scores, "wall": spent[0], "cpu": spent[1], "steps": steps}


def theirs(
    parts: Parts, classes: int, plan: protocols.Schedule, runs: int, python: Path
) -> dict[str, object]:
    """The same by kaiko-eva: one .pt file an image, as its offline mode keeps them."""
    with tempfile.TemporaryDirectory() as folder:
        rows, number = [], 0
        start = heads.Heads.fresh([0], parts["train"][0].shape[1], 1 if classes == 2 else classes)
        weights = {"weight": start.weight_RKC[0].T.contiguous(), "bias": start.bias_R1C[0, 0]}
        torch.save(weights, f"{folder}/head.pt")
        for split, (points, labels) in parts.items():
            for point, label in zip(points, labels.tolist(), strict=True):
                torch.save(point.clone(), f"{folder}/{number}.pt")
                rows.append((f"{number}.pt", label, split))
                number += 1
        names = ["embeddings", "target", "split"]
        pl.DataFrame(rows, schema=names, orient="row").write_csv(f"{folder}/manifest.csv")
        numbers = [classes, plan.steps, plan.patience_epochs, runs]
        command = [str(python), str(FIT), folder, *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise SystemExit(f"kaiko-eva failed:\n{done.stderr[-2000:]}")
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eva-python", type=Path, required=True)
    parser.add_argument("--organ4", type=Path, help="embeddings with labels and splits")
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--only", help="one task of those, or pcam")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    wanted = [asked.only] if asked.only else [*MADE, "organ4"]
    tasks = {
        name: (made(*how, ROWS, WIDTH), how[0]) for name, how in MADE.items() if name in wanted
    }
    if "pcam" in wanted:
        tasks["pcam"] = made(PCAM_CLASSES, 0.05, PCAM, PCAM_WIDTH), PCAM_CLASSES
    if asked.organ4 and "organ4" in wanted:
        parts = loaded(asked.organ4)
        tasks["organ4"] = parts, int(parts["train"][1].max()) + 1
    protocol = dataclasses.replace(protocols.find("eva-0.4"), steps=asked.steps, shared_start=True)
    report = {}
    for name, (parts, classes) in tasks.items():
        plan = protocols.schedule(protocol, len(parts["train"][0]))
        found = ours(parts, classes, protocol, asked.runs)
        peer = theirs(parts, classes, plan, asked.runs, asked.eva_python)
        each = [one["cpu"] / one["steps"] for one in (peer, found)]  # type: ignore[operator]
        wall = [one["wall"] / one["steps"] for one in (peer, found)]  # type: ignore[operator]
        means = [float(np.mean(one["scores"])) for one in (found, peer)]  # type: ignore[arg-type]
        report[name] = {
            "pathfm": round(means[0], 4),
            "eva": round(means[1], 4),
            "difference": round(means[0] - means[1], 4),
            "runs": [found["scores"], peer["scores"]],
            "steps": [found["steps"], peer["steps"]],
            "cpu_ratio": round(each[0] / each[1], 1),
            "wall_ratio": round(wall[0] / wall[1], 1),
            "eva_ms_per_step": round(1e3 * each[0], 2),
        }
        if not asked.json:
            print(name, json.dumps(report[name]), flush=True)
    if asked.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
