"""What a probe found, three ways: rows of the table, the JSON document, and lines for a person."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pathfm_cli.tasks import (
    bootstrap,
    calibration,
    fitting,
    labelled,
    methods,
    predictions,
    protocols,
    scores,
)
from pathfm_cli.tasks import metrics as measures

HEADLINES = (
    "balanced_accuracy",
    "balanced_accuracy_std",
    "balanced_accuracy_low",
    "balanced_accuracy_high",
    "accuracy",
    "ece",
    "brier",
)
Parts = Sequence[labelled.Data]
Outcomes = Sequence[fitting.Outcome]


def rows(
    parts: Parts,
    outcomes: Outcomes,
    predicted: predictions.Predictions,
    config: protocols.Config,
) -> list[scores.Row]:
    """The long table: every metric by run, then mean and deviation over the runs."""
    found: list[scores.Row] = []
    classes, report = parts[0].classes, parts[0].report
    for role, table in pooled(outcomes).items():
        recall = measures.recall(table)
        named = _accuracies(table)
        named |= {f"recall:{name}": recall[:, i] for i, name in enumerate(classes)}
        for name, values in named.items():
            if not np.isnan(values).any():
                found += _over_runs(name, role, values.tolist())
    found += _by_part(parts, outcomes)
    for one in outcomes[0].sensitivity if len(outcomes) == 1 else ():
        for role, value in one["balanced_accuracy"].items():
            if value is not None:
                found.append((f"balanced_accuracy:lr={one['lr']:.6g}", role, None, value))
    measured = _calibration(predicted)
    found += _over_runs("ece", report, measured.ece.tolist())
    found += _over_runs("brier", report, measured.brier.tolist())
    right_N = (predicted.predicted_RN == predicted.truth_N).mean(0)
    ends = bootstrap.balanced_accuracy(predicted.truth_N, right_N, predicted.units_N, config.seed)
    names = ("balanced_accuracy_low", "balanced_accuracy_high")
    return found + [(name, report, None, end) for name, end in zip(names, ends, strict=True)]


def pooled(outcomes: Outcomes) -> dict[str, measures.Counts]:
    """Confusion of every run by role, (R, C, C), over all folds."""
    return {
        role: np.sum([one.tables[role] for one in outcomes], axis=0) for role in outcomes[0].tables
    }


def metrics(found: Sequence[scores.Row], parts: Parts) -> dict[str, float]:
    """The flat numbers of the record; the score is that of the reported split."""
    data = parts[0]
    over = {(name, role): value for name, role, run, value in found if run is None}
    numbers = {name: over[name, data.report] for name in HEADLINES if (name, data.report) in over}
    if "val" in data.names and data.report != "val":
        numbers["val_balanced_accuracy"] = over["balanced_accuracy", "val"]
    if len(parts) == 1:
        numbers |= {f"n_{role}": len(chosen) for role, chosen in data.rows.items()}
    else:
        numbers |= {"n_test": sum(len(part.rows["test"]) for part in parts), "folds": len(parts)}
    return numbers | {
        "classes": len(data.classes),
        "chance": 1 / len(data.classes),
        "runs": max(run for _, _, run, _ in found if run is not None) + 1,
    }


def details(
    parts: Parts,
    outcomes: Outcomes,
    predicted: predictions.Predictions,
    config: protocols.Config,
    notes: Sequence[str],
) -> dict[str, Any]:
    """What the JSON document tells beyond the table."""
    data, measured = parts[0], _calibration(predicted)
    document: dict[str, Any] = {
        "classes": list(data.classes),
        "splits": dict(data.names) if len(parts) == 1 else {"test": "every fold in turn"},
        "selected_on": data.select,
        "reported_on": data.report,
        "std_ddof": 1,
        "bootstrap": {"draws": bootstrap.DRAWS, "level": bootstrap.LEVEL},
        "notes": list(notes),
        "confusion": {role: table.tolist() for role, table in pooled(outcomes).items()},
        "calibration": {
            "bins": calibration.BINS,
            "count": measured.count.tolist(),
            "confidence": _plain(measured.confidence),
            "accuracy": _plain(measured.accuracy),
            "ece": float(measured.ece.mean()),
            "brier": float(measured.brier.mean()),
        },
    }
    if config.method == "linear":
        document["schedule"] = schedule(data, config)
        document["curves"] = [
            {
                "step": [step for step, _ in one.curve],
                "score": [values for _, values in one.curve],
            }
            for one in outcomes
        ]
    if config.lr_scales:
        document["lr_sensitivity"] = [list(one.sensitivity) for one in outcomes]
    if len(parts) > 1:
        document["folds"] = [
            {"name": part.names["test"], **{role: len(r) for role, r in part.rows.items()}}
            for part in parts
        ]
    return document


def schedule(data: labelled.Data, config: protocols.Config) -> dict[str, Any]:
    """The protocol on these training rows."""
    count = len(data.rows["train"]) if config.shots is None else config.shots * len(data.classes)
    return dataclasses.asdict(protocols.schedule(protocols.find(config.protocol), count))


def notes(outcomes: Outcomes, config: protocols.Config, parts: Parts) -> Iterator[str]:
    """What the numbers alone would hide."""
    yield from dict.fromkeys(note for one in outcomes for note in one.notes)
    lost = {
        one["lr_scale"]
        for outcome in outcomes
        for one in outcome.sensitivity
        if None in one["balanced_accuracy"].values()
    }
    for scale in sorted(lost):
        yield (
            f"learning rate x {scale:g} diverged: train loss over twice that of a guess, so it has "
            "no score"
        )
    if config.runs > len(config.seeds()):
        yield f"one run: without --shots all runs of {config.method} are the same"
    counts = _values(outcomes, "iterations")
    if late := sum(count >= methods.MAX_ITERATIONS for count in counts):
        most = methods.MAX_ITERATIONS
        yield f"{late} of {len(counts)} fits had not converged after {most} iterations"
    losses = _values(outcomes, "train_loss")
    if late := sum(loss > fitting.lost(len(parts[0].classes)) for loss in losses):
        yield (
            f"{late} of {len(losses)} runs diverged: train loss over twice that of a guess, so the "
            "score says little"
        )
    if config.method != "linear" or config.select == "last":
        return
    steps = schedule(parts[0], config)["steps"]
    best = _values(outcomes, "best_step")
    if late := sum(step == steps for step in best):
        yield f"{late} of {len(best)} runs were best after the last step: they had not converged"


def lines(
    found: Sequence[scores.Row], parts: Parts, outcomes: Outcomes, config: protocols.Config
) -> list[str]:
    """The table a person sees."""
    data = parts[0]
    how = f"protocol {config.protocol}" if config.method == "linear" else config.method
    how += f", {config.shots} images a class" if config.shots else ""
    text = [f"balanced accuracy, {how}, {len(data.classes)} classes"]
    text.append(f"{'split':<8}{'rows':>8}{'mean':>9}{'sd':>8}   runs")
    by_run = [
        (role, value)
        for name, role, run, value in found
        if name == HEADLINES[0] and run is not None
    ]
    for role in dict.fromkeys(role for role, _ in by_run):
        values = [value for name, value in by_run if name == role]
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        name, count = _named(parts, role)
        runs = " ".join(f"{value:.3f}" for value in values)
        text.append(f"{name:<8}{count:>8}{statistics.fmean(values):>9.4f}{sd:>8}   {runs}")
    over = {name: value for name, role, run, value in found if run is None and role == data.report}
    drawn = f"{config.by}s" if config.by in data.source.table.columns else "images"
    reported = data.names[data.report] if len(parts) == 1 else "all folds"
    text.append(
        f"{reported}: {over['balanced_accuracy_low']:.4f} to {over['balanced_accuracy_high']:.4f} "
        f"in {bootstrap.LEVEL:.0%} of {bootstrap.DRAWS} resamples of its {drawn}"
    )
    text.append(
        f"calibration: expected error {over['ece']:.4f} ({calibration.BINS} bins), "
        f"Brier {over['brier']:.4f}"
    )
    return text + _training(parts, outcomes, config)


def _training(parts: Parts, outcomes: Outcomes, config: protocols.Config) -> list[str]:
    """How far training went, and what other learning rates would have given."""
    if config.method != "linear":
        return []
    best, stopped = _values(outcomes, "best_step"), _values(outcomes, "stopped_step")
    loss = statistics.fmean(_values(outcomes, "train_loss"))
    norm = statistics.fmean(_values(outcomes, "train_gradient"))
    text = [
        f"training: best after {_span(best)} steps, stopped after {_span(stopped)} of "
        f"{schedule(parts[0], config)['steps']}; train loss {loss:.4f}, gradient {norm:.2g}"
    ]
    for one in outcomes[0].sensitivity if len(outcomes) == 1 else ():
        means = ", ".join(
            f"{parts[0].names[role]} " + ("diverged" if value is None else f"{value:.4f}")
            for role, value in one["balanced_accuracy"].items()
        )
        text.append(f"  learning rate x {one['lr_scale']:<6g} ({one['lr']:.3g}): {means}")
    return text


def _values(outcomes: Outcomes, wanted: str) -> list[float]:
    """A number of every run of every fold."""
    return [
        value
        for one in outcomes
        for name, _, values in one.numbers
        if name == wanted
        for value in values
    ]


def _by_part(parts: Parts, outcomes: Outcomes) -> list[scores.Row]:
    """What belongs to one training set; of folds under the fold's name."""
    found: list[scores.Row] = []
    for part, one in zip(parts, outcomes, strict=True):
        several = len(parts) > 1
        fold = part.names["test"] if several else ""
        if several:
            for name, by_run in _accuracies(one.tables["test"]).items():
                found += _over_runs(name, fold, by_run.tolist())
        for name, role, values in one.numbers:
            found += [(name, fold or role, run, value) for run, value in enumerate(values)]
    return found


def _accuracies(table: measures.Counts) -> dict[str, measures.Values]:
    return {
        "balanced_accuracy": measures.balanced_accuracy(table),
        "accuracy": measures.accuracy(table),
    }


def _over_runs(name: str, role: str, values: list[float]) -> list[scores.Row]:
    found: list[scores.Row] = [(name, role, run, value) for run, value in enumerate(values)]
    found.append((name, role, None, statistics.fmean(values)))
    if len(values) > 1:
        found.append((f"{name}_std", role, None, statistics.stdev(values)))
    return found


def _calibration(predicted: predictions.Predictions) -> calibration.Calibration:
    return calibration.measure(predicted.probability_RNC, predicted.predicted_RN, predicted.truth_N)


def _named(parts: Parts, role: str) -> tuple[str, int]:
    """What a person calls a role or a fold, and its rows."""
    if len(parts) == 1:
        return parts[0].names[role], len(parts[0].rows[role])
    sizes: Mapping[str, int] = {part.names["test"]: len(part.rows["test"]) for part in parts}
    if role in sizes:
        return role, sizes[role]
    return f"all {role}", sum(len(part.rows[role]) for part in parts)


def _plain(values: measures.Values) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _span(steps: Sequence[float]) -> str:
    low, high = int(min(steps)), int(max(steps))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
