"""Several inputs side by side: a leaderboard, learning curves, balanced accuracy against ODCorr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from pathfm_cli import page
from pathfm_cli.report import charts, inputs, runs, tables

LABEL_FREE = {"odcorr": "ODCorr", "rankme": "RankMe"}
SIDE_BY_SIDE = (
    # Title, where its numbers lie, their column.
    ("loss", "lines", "loss"),
    ("KL of student from teacher", "lines", "kl"),
    ("ODCorr", "looks", "odcorr"),
    ("RankMe", "looks", "rankme"),
    ("linear probe, balanced accuracy", "looks", "linear"),
    ("20-NN, balanced accuracy", "looks", "knn"),
)
LOOKS, MEASURED = "of training patches", "of the embeddings"
"""Which images a look and `odcorr` measure: different ones, which share no axis."""
LEAST_POINTS = 3
"""A rank correlation of fewer points says nothing."""


SCORES = ("balanced_accuracy", "dice_micro_foreground")
"""What a leaderboard ranks by: of a probe, of a segmentation."""


def section(given: Sequence[inputs.Input]) -> str:
    """What can be said of all of them together; empty if nothing can."""
    if len(given) < 2:
        return ""
    trained = [one for one in given if isinstance(one, inputs.Run)]
    scored = [one for one in given if isinstance(one, inputs.Scores)]
    parts = [_leaderboard(scored), _side_by_side(trained), _figure_6(trained, scored)]
    return "".join(parts)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than `LEAST_POINTS` points or a constant."""
    if len(x) < LEAST_POINTS or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(stats.spearmanr(x, y).statistic)


def _leaderboard(scored: Sequence[inputs.Scores]) -> str:
    free = _label_free(scored)
    boards: dict[tuple[str, str], list[tuple[float, Sequence[Any]]]] = {}
    for one in scored:
        numbers = one.header.metrics
        name = next((name for name in SCORES if name in numbers), None)
        if name is None:
            continue
        value = numbers[name]
        low, high = (numbers.get(f"{name}_{end}") for end in ("low", "high"))
        bar = (
            tables.share(value)
            if low is None or high is None
            else tables.interval(low, value, high)
        )
        said = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        others = [numbers.get("accuracy"), numbers.get("ece")]
        others += [free.get(_source(one), {}).get(name) for name in LABEL_FREE]
        encoder = one.header.settings.get("encoder")  # of segment
        known = one.scored or (encoder if isinstance(encoder, dict) else {})
        model = str(known.get("model", ""))
        row = (one.name, model, one.method, float(value), said, bar, *others)
        boards.setdefault((_data_set(one), one.terms), []).append((value, row))
    if sum(map(len, boards.values())) < 2:
        return ""
    heads = ["scores", "model", "method", "score", "95 % interval", "0 to 1", "accuracy", "ECE"]
    heads += LABEL_FREE.values()
    parts = ["<h3>Leaderboard</h3>"]
    for (data, terms), rows in sorted(boards.items()):
        ranked = [row for _, row in sorted(rows, key=lambda pair: -pair[0])]
        parts.append(f"<h4>{page.text(data)}, {page.text(terms)}</h4>")
        parts.append(tables.table(heads, ranked))
    parts.append(
        '<p class="note">The score is balanced accuracy (probe) or Dice (segment). One table a '
        "data set and way of scoring: across tables nothing compares; intervals that overlap tell "
        "little apart.</p>"
    )
    return "".join(parts)


def _data_set(one: inputs.Scores) -> str:
    name = str(one.scored.get("task", "")) or _unnamed(one)
    return f"{name} (not complete)" if one.scored.get("partial") else name


def _unnamed(one: inputs.Scores) -> str:
    """Of a segmentation, which images and classes they are; all else is not known."""
    settings, said = one.header.settings, ["data set not named"]
    said += [parent for parent in one.header.parents if parent.startswith("images:")]
    said += [f"{key} {settings[key]}" for key in ("labels", "classes") if settings.get(key)]
    return ", ".join(said)


def _side_by_side(trained: Sequence[inputs.Run]) -> str:
    if len(trained) < 2:
        return ""
    drawn = []
    for title, where, column in SIDE_BY_SIDE:
        series = [runs.column(getattr(run, where), column, run.name) for run in trained]
        drawn.append(charts.lines(title, series))
    return f'<h3>Learning curves</h3><div class="charts">{"".join(drawn)}</div>'


def _figure_6(trained: Sequence[inputs.Run], scored: Sequence[inputs.Scores]) -> str:
    """Balanced accuracy over ODCorr and over RankMe, and RankMe over ODCorr (paper, figure 6)."""
    drawn = []
    for column, title in LABEL_FREE.items():
        for of, series in (
            (LOOKS, _of_looks(trained, column)),
            (MEASURED, _of_probes(scored, column)),
        ):
            name = f"balanced accuracy over {title} {of}"
            drawn.append(charts.scatter(name, _with_rho(series), x=f"{title} {of}", y=""))
    if not any(drawn):
        return ""
    for of, series in ((LOOKS, _looks_alone(trained)), (MEASURED, _measured_alone(scored))):
        name = f"RankMe over ODCorr {of}"
        drawn.append(charts.scatter(name, _with_rho(series), x=f"ODCorr {of}", y=""))
    return (
        '<h3>Balanced accuracy against label-free measures</h3><div class="charts">'
        f'{"".join(drawn)}</div><p class="note">Each look of a run is a point, and each '
        "probe whose embeddings were measured by odcorr too. Different images share no "
        "axis: looks measure patches a run trains on, odcorr the embeddings it was given.</p>"
    )


def _with_rho(series: Sequence[charts.Series]) -> list[charts.Series]:
    """The series, their rank correlation and number of points in their names."""
    named = []
    for one in series:
        rho = spearman(one.x, one.y)
        said = f"Spearman {rho:+.2f}, " if rho is not None else ""
        named.append(charts.Series(f"{one.name}: {said}n = {len(one.x)}", one.x, one.y, one.labels))
    return named


def _looks_alone(trained: Sequence[inputs.Run]) -> list[charts.Series]:
    """RankMe at ODCorr of the looks, by run."""
    return _label_free_alone(
        {
            run.name: [(look, f"{run.name}, step {look['step']}") for look in run.looks]
            for run in trained
        }
    )


def _measured_alone(scored: Sequence[inputs.Scores]) -> list[charts.Series]:
    """RankMe at ODCorr of what odcorr measured."""
    found = [(one.header.metrics, one.name) for one in scored if one.task == "odcorr"]
    return _label_free_alone({"odcorr": found})


def _label_free_alone(
    groups: Mapping[str, Sequence[tuple[Mapping[str, Any], str]]],
) -> list[charts.Series]:
    series = []
    for name, found in groups.items():
        points = [
            (numbers["odcorr"], numbers["rankme"], label)
            for numbers, label in found
            if all(_finite(numbers.get(key)) for key in LABEL_FREE)
        ]
        if points:
            x, y, labels = (list(part) for part in zip(*points, strict=True))
            series.append(charts.Series(name, x, y, labels))
    return series


def _of_looks(trained: Sequence[inputs.Run], column: str) -> list[charts.Series]:
    series = []
    for run in trained:
        for judged, name in runs.JUDGED.items():
            found = [
                (look[column], look[judged], f"{run.name}, step {look['step']}")
                for look in run.looks
                if all(_finite(look.get(key)) for key in (column, judged))
            ]
            if found:
                x, y, labels = (list(part) for part in zip(*found, strict=True))
                series.append(charts.Series(f"{run.name}, {name}", x, y, labels))
                break
    return series


def _of_probes(scored: Sequence[inputs.Scores], column: str) -> list[charts.Series]:
    """Probes by data set and protocol, at the measure of the embeddings they were made from."""
    free = _label_free(scored)
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for one in scored:
        value = one.header.metrics.get("balanced_accuracy")
        at = free.get(_source(one), {}).get(column)
        if _finite(value) and _finite(at):
            name = f"probes of {_data_set(one)}, {one.terms}"
            groups.setdefault(name, []).append((at, value, one.name))  # type: ignore[arg-type]
    return [
        charts.Series(name, *(list(part) for part in zip(*points, strict=True)))  # type: ignore[arg-type]
        for name, points in groups.items()
    ]


def _label_free(scored: Sequence[inputs.Scores]) -> dict[str, dict[str, float]]:
    """ODCorr and RankMe by what they were measured on; several splits of one: the last given."""
    return {
        _source(one): {
            name: one.header.metrics[name] for name in LABEL_FREE if name in one.header.metrics
        }
        for one in scored
        if one.task == "odcorr"
    }


def _source(scores: inputs.Scores) -> str:
    return scores.header.parents[0] if scores.header.parents else ""


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and bool(np.isfinite(value))
