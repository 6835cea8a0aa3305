"""One training set, one classifier, several runs: what is predicted, and how training went.

Legend: R = runs, N = rows, K = width, C = classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pathfm_cli import errors
from pathfm_cli.data import draw
from pathfm_cli.tasks import heads, labelled, methods, metrics, protocols

SHOTS = 107
"""Purpose of the random numbers that choose few training images."""
LOOK_ROWS = 16_384
"""Rows whose norms are looked at at once."""
CURVE_POINTS = 200
"""Validations that a curve keeps, about; every n-th and the last."""
Report = Callable[[int, int], None]
Convergence = list[tuple[list[float], list[float]]]
"""See `heads.Heads.convergence`, a pair for each run."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        tables: confusion of every run by role, (R, C, C).
        predicted_RN: class that each run takes of the reported rows.
        probability_RNC: of each class.
        numbers: metric, role ("" if none) and its value for each run.
        tensors: what was trained, of one fold.
        curve: (steps, what chooses the state by run) of the linear probe.
        sensitivity: other learning rates: `lr_scale`, `lr`, and the mean by role; None by role
            where training diverged.
        notes: what a person should know about the embeddings.
    """

    tables: Mapping[str, metrics.Counts]
    predicted_RN: npt.NDArray[np.int64]
    probability_RNC: npt.NDArray[np.float64]
    numbers: Sequence[tuple[str, str, list[float]]] = ()
    tensors: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    curve: Sequence[heads.Point] = ()
    sensitivity: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


def fit(
    data: labelled.Data,
    config: protocols.Config,
    device: torch.device,
    progress: Report | None = None,
) -> Outcome:
    """Train on `train`, choose on what `data` says, predict the rest.

    Raises:
        errors.InputError: an embedding is damaged or its norm no float32, or a class has fewer
            rows than `--shots`.
        errors.PathfmError: what came of it is not finite.
    """
    parts = _load(data, device)
    chosen = _shots(data, config)
    if config.method == "linear":
        outcome = _linear(data, parts, chosen, config, progress)
    else:
        outcome = _other(data, parts, chosen, config)
    _refuse_not_finite(outcome, data, config)
    return dataclasses.replace(outcome, notes=_zeros(parts))


def _other(
    data: labelled.Data,
    parts: Mapping[str, methods.Part],
    chosen: Sequence[torch.Tensor | None],
    config: protocols.Config,
) -> Outcome:
    tested = {role: part for role, part in parts.items() if role != "train"}
    select = parts[data.select] if data.select else None
    found, chose = [], []
    for rows in chosen:
        train = _picked(parts["train"], rows)
        if config.method == "logreg":
            one, strength, iterations = methods.logreg(train, select, tested, len(data.classes))
            chose.append((strength, float(iterations)))
        elif config.method == "knn":
            one = dict(methods.knn(train, tested, len(data.classes), config.neighbours))
        else:
            one = dict(methods.simpleshot(train, tested, len(data.classes)))
        found.append(one)
    probability = {role: np.stack([one[role] for one in found]) for role in tested}
    predicted = {role: values.argmax(2) for role, values in probability.items()}
    return Outcome(
        tables=_tables(predicted, data),
        predicted_RN=predicted[data.report],
        probability_RNC=probability[data.report],
        numbers=[
            (name, data.select or "", list(values))
            for name, values in zip(("C", "iterations"), zip(*chose, strict=True), strict=False)
        ],
    )


def _linear(
    data: labelled.Data,
    parts: Mapping[str, methods.Part],
    chosen: Sequence[torch.Tensor | None],
    config: protocols.Config,
    progress: Report | None,
) -> Outcome:
    protocol = protocols.find(config.protocol)
    select = parts[data.select] if data.select else None
    seeds, scales = config.seeds(), (1.0, *config.lr_scales)
    runs = [
        heads.Run(seed, scale, picked)
        for scale in scales
        for seed, picked in zip(seeds, chosen, strict=True)
    ]
    trained = heads.fit(parts["train"], select, len(data.classes), protocol, runs, progress)
    device = parts["train"][0].device
    by_scale = [
        trained.heads.take(torch.arange(at, at + len(seeds), device=device))
        for at in range(0, len(runs), len(seeds))
    ]
    own = by_scale[0]
    tested = {role: part for role, part in parts.items() if role != "train"}
    by_run = [_convergence(one, parts["train"], chosen) for one in by_scale]
    losses = by_run[0]
    numbers = [
        ("best_step", data.select or "", [float(step) for step in trained.best_step[: len(seeds)]]),
        ("stopped_step", data.select or "", list(map(float, trained.stopped_step[: len(seeds)]))),
        ("train_loss", "train", [loss[0] for loss, _ in losses]),
        ("train_gradient", "train", [norm[0] for _, norm in losses]),
    ]
    rows = len(parts["train"][0]) if chosen[0] is None else len(chosen[0])
    lr = protocols.schedule(protocol, rows).lr
    return Outcome(
        tables={role: own.confusion(*part) for role, part in tested.items()},
        predicted_RN=own.predict(parts[data.report][0]).cpu().numpy(),
        probability_RNC=own.probabilities(parts[data.report][0]).numpy(),
        numbers=numbers,
        tensors={
            "weight": own.weight_RKC.transpose(1, 2).contiguous().cpu().numpy(),
            "bias": own.bias_R1C[:, 0].contiguous().cpu().numpy(),
        },
        curve=_curve(trained.curve, len(seeds)),
        sensitivity=_sensitivity(scales, by_scale, by_run, tested, lr) if config.lr_scales else (),
    )


def _curve(points: Sequence[heads.Point], runs: int) -> list[heads.Point]:
    """The validations of the first `runs` runs until the last of them stopped, thinned."""
    own = [(step, values[:runs]) for step, values in points]
    own = [point for point in own if any(value is not None for value in point[1])]
    kept = own[:: max(1, -(-len(own) // CURVE_POINTS))]
    return kept if not own or kept[-1] is own[-1] else [*kept, own[-1]]


def _sensitivity(
    scales: Sequence[float],
    by_scale: Sequence[heads.Heads],
    by_run: Sequence[Convergence],
    tested: Mapping[str, methods.Part],
    lr: float,
) -> list[dict[str, Any]]:
    found = []
    every = zip(scales, by_scale, by_run, strict=True)
    for scale, trained, losses in sorted(every, key=lambda one: one[0]):
        means: dict[str, float | None] = dict.fromkeys(tested)
        if not _diverged(trained, losses):
            means = {
                role: float(metrics.balanced_accuracy(trained.confusion(*part)).mean())
                for role, part in tested.items()
            }
        found.append({"lr_scale": scale, "lr": lr * scale, "balanced_accuracy": means})
    return found


def lost(classes: int) -> float:
    """The mean cross-entropy from which heads count as diverged: twice that of a guess, log C.

    An early state of a hard task may lie a little above a guess.
    """
    return 2 * math.log(classes)


def _diverged(trained: heads.Heads, losses: Convergence) -> bool:
    """Whether a run explains what it learnt from far worse than a guess: loss above `lost`."""
    values = [value for loss, norm in losses for value in (*loss, *norm)]
    worst = max(loss[0] for loss, _ in losses)
    return not all(map(math.isfinite, values)) or worst > lost(trained.classes)


def _convergence(
    trained: heads.Heads, train: methods.Part, chosen: Sequence[torch.Tensor | None]
) -> Convergence:
    """Loss and norm of the gradient of each run, on the rows that it learnt from."""
    return [
        trained.take(torch.tensor([run], device=train[0].device)).convergence(
            *_picked(train, picked)
        )
        for run, picked in enumerate(chosen)
    ]


def _refuse_not_finite(outcome: Outcome, data: labelled.Data, config: protocols.Config) -> None:
    arrays: list[npt.NDArray[Any]] = [outcome.probability_RNC, *outcome.tensors.values()]
    numbers = (value for _, _, by_run in outcome.numbers for value in by_run)
    if not all(np.isfinite(one).all() for one in arrays) or not all(map(math.isfinite, numbers)):
        raise errors.PathfmError(
            f"{data.source.path}: --method {config.method} diverged, its results are not finite.",
            "are the embeddings of a usual size (norm 1 to 1000)? scale them down",
        )


def _zeros(parts: Mapping[str, methods.Part]) -> tuple[str, ...]:
    count = sum(int((part == 0).all(1).sum()) for part, _ in parts.values())
    return (f"{count} embeddings are all zeros: they tell nothing",) if count else ()


def _load(data: labelled.Data, device: torch.device) -> dict[str, methods.Part]:
    """Read the file once; the splits are views into one matrix."""
    rows = np.concatenate(list(data.rows.values()))
    with np.errstate(over="ignore"):  # told below
        matrix = torch.from_numpy(data.source.matrix(rows))
    large = torch.cat([~part.square().sum(1).isfinite() for part in torch.split(matrix, LOOK_ROWS)])
    if large.any():
        row = int(rows[int(large.int().argmax())])
        raise errors.InputError(
            f"{data.source.path}: the embedding in row {row} is too large, its squared norm is no "
            "float32.",
            "embed again, or scale the embeddings down",
        )
    parts = torch.split(matrix.to(device), [len(rows) for rows in data.rows.values()])
    return {
        role: (part, torch.from_numpy(data.labels[role]).to(device))
        for role, part in zip(data.rows, parts, strict=True)
    }


def _shots(data: labelled.Data, config: protocols.Config) -> list[torch.Tensor | None]:
    """The training rows of every run; None means all."""
    if config.shots is None:
        return [None for _ in config.seeds()]
    labels = data.labels["train"]
    counts = np.bincount(labels, minlength=len(data.classes))
    if counts.min() < config.shots:
        least = int(counts.argmin())
        raise errors.InputError(
            f"{data.classes[least]} has {counts[least]} images in {data.names['train']}, fewer "
            f"than --shots {config.shots}.",
            f"--shots {counts[least]}",
        )
    return [
        torch.from_numpy(methods.draw_shots(labels, config.shots, draw.rng(seed, 0, SHOTS)))
        for seed in config.seeds()
    ]


def _picked(part: methods.Part, rows: torch.Tensor | None) -> methods.Part:
    if rows is None:
        return part
    at = rows.to(part[0].device)
    return part[0][at], part[1][at]


def _tables(
    predicted: Mapping[str, npt.NDArray[np.int64]], data: labelled.Data
) -> dict[str, metrics.Counts]:
    return {
        role: np.stack(
            [metrics.confusion(data.labels[role], one, len(data.classes)) for one in runs]
        )
        for role, runs in predicted.items()
    }
