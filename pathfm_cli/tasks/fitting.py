"""One training set, one classifier, several runs: what is predicted, and how training went.

Legend: R = runs, N = rows, K = width, C = classes.
"""

from __future__ import annotations

import dataclasses
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
CURVE_POINTS = 200
"""Validations that a curve keeps, about; every n-th and the last."""
Report = Callable[[int, int], None]


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
        sensitivity: other learning rates: `lr_scale`, `lr`, and the mean by role.
    """

    tables: Mapping[str, metrics.Counts]
    predicted_RN: npt.NDArray[np.int64]
    probability_RNC: npt.NDArray[np.float64]
    numbers: Sequence[tuple[str, str, list[float]]] = ()
    tensors: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    curve: Sequence[heads.Point] = ()
    sensitivity: Sequence[Mapping[str, Any]] = ()


def fit(
    data: labelled.Data,
    config: protocols.Config,
    device: torch.device,
    progress: Report | None = None,
) -> Outcome:
    """Train on `train`, choose on what `data` says, predict the rest.

    Raises:
        errors.InputError: an embedding is damaged, or a class has fewer rows than `--shots`.
    """
    parts = _load(data, device)
    chosen = _shots(data, config)
    if config.method == "linear":
        return _linear(data, parts, chosen, config, progress)
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
    losses = [
        own.take(torch.tensor([run], device=device)).convergence(*_picked(parts["train"], picked))
        for run, picked in enumerate(chosen)
    ]
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
        sensitivity=_sensitivity(scales, by_scale, tested, lr) if config.lr_scales else (),
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
    tested: Mapping[str, methods.Part],
    lr: float,
) -> list[dict[str, Any]]:
    found = []
    for scale, trained in sorted(zip(scales, by_scale, strict=True), key=lambda pair: pair[0]):
        means = {
            role: float(metrics.balanced_accuracy(trained.confusion(*part)).mean())
            for role, part in tested.items()
        }
        found.append({"lr_scale": scale, "lr": lr * scale, "balanced_accuracy": means})
    return found


def _load(data: labelled.Data, device: torch.device) -> dict[str, methods.Part]:
    """Read the file once; the splits are views into one matrix."""
    matrix = torch.from_numpy(data.source.matrix(np.concatenate(list(data.rows.values()))))
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
