"""Linear probe: how well one linear layer on frozen embeddings tells classes apart.

Paper IV-D2 and Table VI. Several runs differ in the head's first weights and in the data order;
the score is the mean balanced accuracy with its sample standard deviation (n - 1).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pathfm_cli import artifacts
from pathfm_cli.tasks import bootstrap, features, heads, labelled, metrics, protocols, scores

Report = Callable[[int, int], None]


def probe(
    source: features.Features,
    out: Path | None,
    config: protocols.Config,
    *,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: Report | None = None,
) -> scores.Result:
    """Train and score the heads and, with `out`, write the `scores` artifact and the heads.

    Args:
        source: embeddings with the columns `label` and `split`.
        out: see `scores.place`; None writes nothing.
        config: what to do.
        device: where the heads are trained.
        overwrite: replace what `out` holds.
        progress: called with (steps done, most steps).

    Raises:
        errors.InputError, errors.UsageError: as `labelled.prepare`, or an embedding holds NaN.
        errors.OutputClash: `out` holds something else.
    """
    made = artifacts.Header(kind="scores", parents=(source.parent,), settings=config.settings())
    if out and (old := artifacts.finished(scores.place(out).table, made, overwrite=overwrite)):
        return scores.Result(old, ("up to date",))
    start = time.perf_counter()
    data = labelled.prepare(source, config.splits(), config.select)
    protocol = protocols.find(config.protocol)
    tensors = _load(data, torch.device(device))
    seeds = [config.seed + run for run in range(config.runs)]
    classes = len(data.classes)
    select = tensors[data.select] if data.select else None
    fit = heads.fit(tensors["train"], select, classes, protocol, seeds, progress)
    tables = {role: fit.heads.confusion(*tensors[role]) for role in tensors if role != "train"}
    rows = _rows(tables, fit, data) + _interval(fit, tensors[data.report], data, config.seed)
    numbers = _metrics(rows, data) | {"seconds": time.perf_counter() - start}
    made = dataclasses.replace(made, metrics=numbers)
    lines = _lines(rows, data, config)
    if out is None:
        return scores.Result(scores.unsaved(made), data.notes, lines)
    details = _details(data, protocol, tables)
    record = scores.write(out, scores.table(rows), made, details, _head_tensors(fit))
    return scores.Result(record, data.notes, lines)


def plan(source: features.Features, out: Path | None, config: protocols.Config) -> dict[str, Any]:
    """What `probe` would do: rows, classes and the schedule that follows from them.

    Raises:
        errors.InputError, errors.UsageError: as `labelled.prepare`.
    """
    data = labelled.prepare(source, config.splits(), config.select)
    schedule = protocols.schedule(protocols.find(config.protocol), len(data.rows["train"]))
    return {
        "input": str(source.path),
        "rows": {data.names[role]: len(rows) for role, rows in data.rows.items()},
        "classes": list(data.classes),
        "width": source.width,
        "runs": config.runs,
        **dataclasses.asdict(schedule),
        "notes": list(data.notes),
        "writes": [str(path) for path in scores.written(out)],
    }


def _load(
    data: labelled.Data, device: torch.device
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read the file once; the splits are views into one matrix."""
    matrix = torch.from_numpy(data.source.matrix(np.concatenate(list(data.rows.values()))))
    parts = torch.split(matrix.to(device), [len(rows) for rows in data.rows.values()])
    return {
        role: (part, torch.from_numpy(data.labels[role]).to(device))
        for role, part in zip(data.rows, parts, strict=True)
    }


def _rows(
    tables: Mapping[str, metrics.Counts], fit: heads.Fit, data: labelled.Data
) -> list[scores.Row]:
    """The long table: every metric by run, then mean and deviation over the runs."""
    rows: list[scores.Row] = []
    for role, table in tables.items():
        named = {
            "balanced_accuracy": metrics.balanced_accuracy(table),
            "accuracy": metrics.accuracy(table),
        }
        recall = metrics.recall(table)
        named |= {f"recall:{name}": recall[:, i] for i, name in enumerate(data.classes)}
        for name, values in named.items():
            if not np.isnan(values).any():
                rows += _over_runs(name, role, values.tolist())
    for name, steps in (("best_step", fit.best_step), ("stopped_step", fit.stopped_step)):
        rows += [(name, data.select or "", run, float(step)) for run, step in enumerate(steps)]
    return rows


def _interval(
    fit: heads.Fit,
    tested: tuple[torch.Tensor, torch.Tensor],
    data: labelled.Data,
    seed: int,
) -> list[scores.Row]:
    """The bootstrap interval of the score."""
    x_NK, y_N = tested
    right_N = (fit.heads.predict(x_NK) == y_N).double().mean(0).cpu().numpy()
    units_N = data.units(data.report)
    ends = bootstrap.balanced_accuracy(data.labels[data.report], right_N, units_N, seed)
    names = ("balanced_accuracy_low", "balanced_accuracy_high")
    return [(name, data.report, None, end) for name, end in zip(names, ends, strict=True)]


def _over_runs(name: str, role: str, values: list[float]) -> list[scores.Row]:
    rows: list[scores.Row] = [(name, role, run, value) for run, value in enumerate(values)]
    rows.append((name, role, None, statistics.fmean(values)))
    if len(values) > 1:
        rows.append((f"{name}_std", role, None, statistics.stdev(values)))
    return rows


def _metrics(rows: list[scores.Row], data: labelled.Data) -> dict[str, float]:
    """The flat numbers of the record; the score is that of the reported split."""
    over = {(name, role): value for name, role, run, value in rows if run is None}
    numbers = {
        name: over[name, data.report]
        for name in (
            "balanced_accuracy",
            "balanced_accuracy_std",
            "balanced_accuracy_low",
            "balanced_accuracy_high",
            "accuracy",
        )
        if (name, data.report) in over
    }
    if "val" in data.names and data.report != "val":
        numbers["val_balanced_accuracy"] = over["balanced_accuracy", "val"]
    numbers |= {f"n_{role}": len(chosen) for role, chosen in data.rows.items()}
    return numbers | {
        "classes": len(data.classes),
        "chance": 1 / len(data.classes),
        "runs": max(run for _, _, run, _ in rows if run is not None) + 1,
    }


def _details(
    data: labelled.Data, protocol: protocols.Protocol, tables: Mapping[str, metrics.Counts]
) -> dict[str, Any]:
    """What the JSON document tells beyond the table."""
    return {
        "classes": list(data.classes),
        "schedule": dataclasses.asdict(protocols.schedule(protocol, len(data.rows["train"]))),
        "splits": dict(data.names),
        "selected_on": data.select,
        "reported_on": data.report,
        "std_ddof": 1,
        "bootstrap": {"draws": bootstrap.DRAWS, "level": bootstrap.LEVEL},
        "notes": list(data.notes),
        "confusion": {role: table.tolist() for role, table in tables.items()},
    }


def _head_tensors(fit: heads.Fit) -> dict[str, npt.NDArray[np.float32]]:
    """Weights (R, C, K) and biases (R, C), as torch.nn.Linear keeps them."""
    return {
        "weight": fit.heads.weight_RKC.transpose(1, 2).contiguous().cpu().numpy(),
        "bias": fit.heads.bias_R1C[:, 0].contiguous().cpu().numpy(),
    }


def _lines(rows: list[scores.Row], data: labelled.Data, config: protocols.Config) -> list[str]:
    """The table a person sees."""
    lines = [f"balanced accuracy, protocol {config.protocol}, {len(data.classes)} classes"]
    lines.append(f"{'split':<8}{'rows':>8}{'mean':>9}{'sd':>8}   runs")
    for role in ("val", "test"):
        values = [
            v for m, s, run, v in rows if (m, s) == ("balanced_accuracy", role) and run is not None
        ]
        if values:
            sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
            runs = " ".join(f"{value:.3f}" for value in values)
            name, count = data.names[role], len(data.rows[role])
            lines.append(f"{name:<8}{count:>8}{statistics.fmean(values):>9.4f}{sd:>8}   {runs}")
    low, high = (
        value for name, _, _, value in rows if name.endswith(("accuracy_low", "accuracy_high"))
    )
    drawn = "groups" if "group" in data.source.table.columns else "images"
    lines.append(
        f"{data.names[data.report]}: {low:.4f} to {high:.4f} in {bootstrap.LEVEL:.0%} of "
        f"{bootstrap.DRAWS} resamples of its {drawn}"
    )
    return lines
