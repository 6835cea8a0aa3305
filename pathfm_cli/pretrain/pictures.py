"""Pictures of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, disk, errors

SMOOTHING = 0.9
"""Share of the past in the running mean drawn over the raw loss."""


def loss_curve(run: Path, picture: Path) -> None:
    """Draw loss, its KL part and learning rate of a run's `metrics.jsonl` over its steps, as PNG.

    The loss is the teacher's entropy plus the KL divergence of the student from the teacher. While
    the teacher still spreads over more prototypes, its entropy, and with it the loss, rises; what
    the student learns shows in the KL.

    Raises:
        errors.InputError: the run keeps no metrics.
        errors.MissingExtra: matplotlib is absent.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise errors.MissingExtra("The loss curve", "matplotlib", "plots") from error
    log = artifacts.resolve(run).with_name("metrics.jsonl")
    if not log.is_file():
        raise errors.InputError(f"{log} does not exist.", "name the run's own folder")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    canvas = figure.Figure(figsize=(7, 6), layout="constrained")
    top, bottom = canvas.subplots(2, 1, sharex=True)
    _curve(top, steps, losses, "DINO loss = teacher entropy + KL")
    _curve(bottom, steps, [row["kl"] for row in rows], "KL of student from teacher")
    canvas.suptitle(str(log.parent))
    bottom.set_xlabel("step")
    rate = bottom.twinx()
    rate.plot(steps, [row["lr"] for row in rows], color="tab:orange", lw=0.8)
    rate.set_ylabel("learning rate", color="tab:orange")
    with disk.atomic(picture) as temporary:
        canvas.savefig(temporary, format="png", dpi=120)


def _curve(axes: Any, steps: list[int], values: list[float], name: str) -> None:
    axes.plot(steps, values, color="0.75")
    axes.plot(steps, _smooth(values), color="tab:blue", label="running mean")
    axes.set_ylabel(name)
    axes.legend(loc="best")


def _smooth(values: list[float]) -> list[float]:
    smooth, mean = [], values[0]
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smooth.append(mean)
    return smooth
