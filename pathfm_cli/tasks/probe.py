"""How well a simple classifier on frozen embeddings tells classes apart.

Paper IV-D2 and Table VI: a linear probe. Several runs differ in the head's first weights and in the
data order; the score is the mean balanced accuracy with its sample standard deviation (n - 1).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pathfm_cli import artifacts
from pathfm_cli.tasks import (
    features,
    fitting,
    folds,
    labelled,
    predictions,
    protocols,
    scores,
    summary,
)

Report = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Result(scores.Result):
    """What `probe` hands to the command line."""

    predicted: predictions.Predictions | None = None
    """Of the reported images."""


def probe(
    source: features.Features,
    out: Path | None,
    config: protocols.Config,
    *,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: Report | None = None,
) -> Result:
    """Train and score and, with `out`, write the scores, what was trained and what was predicted.

    Args:
        source: embeddings with the column `label`, and `split` unless folds are asked for.
        out: see `scores.place`; None writes nothing.
        config: what to do.
        device: where the heads are trained.
        overwrite: replace what `out` holds.
        progress: called with (steps done, most steps).

    Raises:
        errors.InputError, errors.UsageError: as `labelled.prepare`, `folds.prepare`,
            `fitting.fit`.
        errors.OutputClash: `out` holds something else.
    """
    settings = config.settings()
    if scored := source.scored():
        settings["scored"] = scored
    made = artifacts.Header(kind="scores", parents=(source.parent,), settings=settings)
    if out and (old := artifacts.finished(scores.place(out).table, made, overwrite=overwrite)):
        told = (*scores.notes(out), "up to date")
        return Result(old, told, (), predictions.read(scores.place(out).table))
    start = time.perf_counter()
    parts = _parts(source, config)
    outcomes = [
        fitting.fit(part, config, torch.device(device), _share(progress, number, len(parts)))
        for number, part in enumerate(parts)
    ]
    predicted = _predicted(parts, outcomes, config.by)
    rows = summary.rows(parts, outcomes, predicted, config)
    numbers = summary.metrics(rows, parts) | {"seconds": time.perf_counter() - start}
    made = dataclasses.replace(made, metrics=numbers)
    notes = source.incomplete()
    notes += tuple(dict.fromkeys(note for part in parts for note in part.notes))
    notes += tuple(summary.notes(outcomes, config, parts))
    lines = summary.lines(rows, parts, outcomes, config)
    if out is None:
        return Result(scores.unsaved(made), notes, lines, predicted)
    record = scores.write(
        out,
        scores.table(rows),
        made,
        summary.details(parts, outcomes, predicted, config, notes),
        _tensors(outcomes),
        (predicted.frame(), predicted.header(f"scores:{made.id}")),
    )
    return Result(record, notes, lines, predicted)


def plan(source: features.Features, out: Path | None, config: protocols.Config) -> dict[str, Any]:
    """What `probe` would do: rows, classes and the schedule that follows from them.

    Raises:
        errors.InputError, errors.UsageError: as `labelled.prepare`, `folds.prepare`.
    """
    parts = _parts(source, config)
    data = parts[0]
    linear = config.method == "linear"
    schedule = summary.schedule(data, config) if linear else {}
    return {
        "input": str(source.path),
        "method": config.method,
        "rows": {data.names[role]: len(rows) for role, rows in data.rows.items()},
        "folds": len(parts) if config.folds is not None else 0,
        "classes": list(data.classes),
        "width": source.width,
        "runs": len(config.seeds()),
        **schedule,
        "notes": [*source.incomplete(), *data.notes],
        "writes": [str(path) for path in scores.written(out, heads=linear, predictions=True)],
    }


def expected(source: features.Features, config: protocols.Config) -> predictions.Predictions:
    """The images that `probe` would report, by no run yet.

    Raises:
        errors.InputError, errors.UsageError: as `labelled.prepare`, `folds.prepare`.
    """
    return _predicted(_parts(source, config), (), config.by)


def _parts(source: features.Features, config: protocols.Config) -> list[labelled.Data]:
    if config.by != "group":
        labelled.check_by(source, config.by)
    if config.folds is None:
        return [labelled.prepare(source, config.splits(), config.chooser, config.chosen)]
    parts = folds.prepare(source, config.folds, config.by, config.chooser, config.chosen)
    folds.same_classes(parts)
    return parts


def _share(progress: Report | None, number: int, parts: int) -> Report | None:
    """Progress of one of several parts."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, parts * total)


def _predicted(
    parts: Sequence[labelled.Data], outcomes: Sequence[fitting.Outcome], by: str
) -> predictions.Predictions:
    """The reported rows of all folds."""
    data, source = parts[0], parts[0].source
    rows = np.concatenate([part.rows[part.report] for part in parts])
    none = np.zeros((0, len(rows)), dtype=np.int64)
    nothing = np.zeros((0, len(rows), len(data.classes)))
    named = "id" in source.table.columns and not source.table["id"].gather(rows).null_count()
    return predictions.Predictions(
        name=str(source.path),
        ids=source.table["id"].gather(rows).cast(pl.String).to_list() if named else None,
        classes=data.classes,
        truth_N=np.concatenate([part.labels[part.report] for part in parts]),
        units_N=labelled.units(source, rows, by),
        predicted_RN=np.concatenate([one.predicted_RN for one in outcomes] or [none], 1),
        probability_RNC=np.concatenate([one.probability_RNC for one in outcomes] or [nothing], 1),
    )


def _tensors(outcomes: Sequence[fitting.Outcome]) -> dict[str, Any]:
    """What was trained; of several folds under `fold N.`."""
    if len(outcomes) == 1:
        return dict(outcomes[0].tensors)
    return {
        f"fold{number}.{name}": tensor
        for number, one in enumerate(outcomes)
        for name, tensor in one.tensors.items()
    }
