"""Scores on the page: numbers with intervals, recall by class, confusion, calibration, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import page
from pathfm_cli.report import charts, inputs, tables

_RECALL = "recall:"
_SHARES = ("accuracy", "balanced_accuracy", "dice", "iou", "odcorr", "pixel_accuracy")
"""Metrics between 0 and 1 by how their names begin: they get a bar."""
MOST_ROWS = 60
"""Rows of the table of all metrics that are shown."""


def section(scores: inputs.Scores) -> str:
    """Everything about one `scores` artifact."""
    parts = [tables.facts(_facts(scores))]
    notes = scores.document.get("notes")
    if isinstance(notes, list):
        parts += [f'<p class="note">{page.text(note)}</p>' for note in notes[:20]]
    parts.append(_summary(scores))
    split = _reported(scores)
    drawn = [
        _recall(scores, split),
        _calibration(scores),
        _curves(scores),
        *_exports(scores),
        _spectrum(scores),
    ]
    if any(drawn):
        parts.append(f'<div class="charts">{"".join(drawn)}</div>')
    parts.append(_confusion(scores, split))
    return "".join([*parts, tables.settings(scores.header.settings)])


def _facts(scores: inputs.Scores) -> dict[str, Any]:
    settings = scores.header.settings
    named = ("method", "select", "runs", "seed", "shots", "split")
    return {
        "task": scores.task,
        "data set": scores.scored.get("task"),
        "model": scores.scored.get("model"),
        "protocol": scores.protocol,
        **{name: settings.get(name) for name in named},
        "from": ", ".join(scores.header.parents),
        "id": scores.header.id,
    }


def _summary(scores: inputs.Scores) -> str:
    """Metrics over the runs: mean, deviation and interval."""
    over = scores.frame.filter(pl.col("run").is_null())
    if "image" in over.columns:
        over = over.filter(pl.col("image").is_null())
    values = {(name, split or ""): value for name, split, value in _triples(over)}
    rows: list[Sequence[Any]] = []
    ends = ("_std", "_low", "_high")
    for (name, split), value in values.items():
        if name.startswith(_RECALL) or name.endswith(ends) or value is None:
            continue
        deviation, low, high = (values.get((name + end, split)) for end in ends)
        bar = None
        if low is not None and high is not None:
            bar = tables.interval(low, value, high)
        elif name.startswith(_SHARES) and 0 <= value <= 1:
            bar = tables.share(value)
        said = None if low is None or high is None else f"{low:.4f} to {high:.4f}"
        rows.append((name, split, value, deviation, said, bar))
    heads = ["metric", "split", "value", "sd over runs", "95 % interval", "0 to 1"]
    more = len(rows) - MOST_ROWS
    note = f'<p class="note">{more} more rows are in the file.</p>' if more > 0 else ""
    return tables.table(heads, rows[:MOST_ROWS]) + note


def _recall(scores: inputs.Scores, split: str) -> str:
    over = scores.frame.filter(
        pl.col("run").is_null()
        & (pl.col("split") == split)
        & pl.col("metric").str.starts_with(_RECALL)
    )
    rows: list[Sequence[Any]] = [
        (name.removeprefix(_RECALL), value, tables.share(value))
        for name, _, value in _triples(over)
        if value is not None and not name.endswith("_std")
    ]
    if not rows:
        return ""
    body = tables.table(["class", "recall", "0 to 1"], rows)
    return f"<figure><figcaption>recall by class, {page.text(split)}</figcaption>{body}</figure>"


def _confusion(scores: inputs.Scores, split: str) -> str:
    """The table of all runs together, of the reported split."""
    found = scores.document.get("confusion")
    classes = scores.document.get("classes")
    if isinstance(found, Mapping):
        found = found.get(split)
    counts = _numbers(found)
    if counts is None or not isinstance(classes, list):
        return ""
    if counts.ndim == 3:
        counts = counts.sum(axis=0)
    if counts.shape != (len(classes), len(classes)) or (counts < 0).any():
        return '<p class="note">The confusion table in the document is damaged and left out.</p>'
    return tables.confusion([str(name) for name in classes], counts)


def _calibration(scores: inputs.Scores) -> str:
    found = scores.document.get("calibration")
    if not isinstance(found, Mapping):
        return ""
    named = ("confidence", "accuracy", "count")
    bins = [one for name in named if (one := _numbers(found.get(name), nulls=True)) is not None]
    if len(bins) < len(named) or {one.shape for one in bins} != {(len(bins[0]),)}:
        return '<p class="note">The calibration in the document is damaged and left out.</p>'
    confidence, accuracy, count = (np.nan_to_num(one).tolist() for one in bins)
    error = found.get("ece")
    said = f", expected error {error:.4f}" if isinstance(error, float) else ""
    return charts.reliability(f"reliability{said}", confidence, accuracy, count)


def _curves(scores: inputs.Scores) -> str:
    """What chose the state of each run, over the steps of its training."""
    found = scores.document.get("curves")
    series = []
    for fold in found if isinstance(found, list) else ():
        if not isinstance(fold, Mapping):
            continue
        steps, values = (_numbers(fold.get(name), nulls=True) for name in ("step", "score"))
        if steps is None or values is None or values.ndim != 2 or len(steps) != len(values):
            continue
        series += [
            charts.Series(f"run {run}", steps.tolist(), values[:, run].tolist())
            for run in range(values.shape[1])
        ]
    return charts.lines("score that chooses, while the heads train", series[: charts.COLOURS])


def _exports(scores: inputs.Scores) -> list[str]:
    """ODCorr and RankMe of all exports of a run, by step."""
    if scores.task != "odcorr":
        return []
    over = scores.frame.drop_nulls("run").sort("run")
    drawn = []
    for name, title in (("odcorr", "ODCorr"), ("rankme", "RankMe")):
        points = over.filter(pl.col("metric") == name)
        series = charts.Series(title, points["run"].to_list(), points["value"].to_list())
        drawn.append(charts.lines(f"{title} of every export", [series]))
    return drawn


def _spectrum(scores: inputs.Scores) -> str:
    """How variance falls from one principal direction to the next."""
    found = _numbers(scores.document.get("spectrum"))
    if found is None or found.ndim != 1 or not (found > 0).any():
        return ""
    ranks = 1 + np.flatnonzero(found > 0)
    shares = found[ranks - 1] / found[ranks - 1].sum()
    series = charts.Series("share", np.log10(ranks).tolist(), np.log10(shares).tolist())
    title = "share of variance by principal direction, log10"
    return charts.lines(title, [series], x="log10 of the direction's rank")


def _reported(scores: inputs.Scores) -> str:
    found = scores.document.get("reported_on")
    return found if isinstance(found, str) else "test"


def _triples(frame: pl.DataFrame) -> list[tuple[str, str | None, float | None]]:
    return list(frame.select("metric", "split", "value").iter_rows())


def _numbers(found: Any, *, nulls: bool = False) -> npt.NDArray[np.float64] | None:
    """Nested lists as an array of finite numbers, `nulls` as NaN; None if they are none."""
    if not isinstance(found, list) or not found:
        return None
    try:
        numbers = np.array(found, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    good = np.isfinite(numbers) | (np.isnan(numbers) if nulls else False)
    return numbers if good.all() else None
