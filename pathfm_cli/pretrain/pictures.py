"""Pictures of a run."""

from __future__ import annotations

import json
from pathlib import Path

from pathfm_cli import artifacts, errors

SMOOTHING = 0.9
"""Share of the past in the running mean drawn over the raw loss."""


def loss_curve(run: Path, picture: Path) -> None:
    """Draw loss and learning rate of a run's `metrics.jsonl` over its steps, as PNG.

    Raises:
        errors.InputError: the run keeps no metrics.
        errors.MissingExtra: matplotlib is absent.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise errors.MissingExtra("The loss curve", "matplotlib", "plots") from error
    log = artifacts.resolve(run).with_name("metrics.jsonl")
    if not log.exists():
        raise errors.InputError(f"{log} does not exist.", "name the run's own folder")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    canvas = figure.Figure(figsize=(7, 4), layout="constrained")
    axes = canvas.subplots()
    axes.plot(steps, losses, color="0.75", label="loss")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="running mean")
    axes.set(xlabel="step", ylabel="DINO loss", title=str(log.parent))
    rate = axes.twinx()
    rate.plot(steps, [row["lr"] for row in rows], color="tab:orange", lw=0.8, label="lr")
    rate.set_ylabel("learning rate", color="tab:orange")
    axes.legend(loc="upper right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.atomic(picture) as temporary:
        canvas.savefig(temporary, format="png", dpi=120)


def _smooth(values: list[float]) -> list[float]:
    smooth, mean = [], values[0]
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smooth.append(mean)
    return smooth
