"""ODCorr of every encoder that a training run exported, on one set of patches."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts
from pathfm_cli.tasks import features, odcorr, runs, scores

SHOWN = ("odcorr", "rankme", "alpha")
"""What the record tells of every export; the table has all."""


def measure(
    run: Path,
    patches: Path | None,
    out: Path | None,
    *,
    split: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    progress: odcorr.Report = lambda done, total: None,
) -> scores.Result:
    """Measure the exports of a run in order; the metrics are those of the last one.

    In the table, `run` is the step of the export, and null for the last one once more. The record
    has `exports`: step, ODCorr, RankMe and alpha of each.

    Args:
        run: a finished run folder, or the weights in it.
        patches: `patches` artifact; None means the one the run recorded.
        out: see `scores.place`; None writes nothing.
        split: only patches of this split.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32 or bf16: arithmetic of the encoders.
        overwrite: replace what `out` holds.
        progress: called with (patches done, patches), over all exports together.

    Raises:
        errors.InputError, errors.UsageError: as `runs.embed_run` and `odcorr.measure`.
        errors.OutputClash: `out` holds something else.
    """
    found, header = _inputs(run, patches, split, precision)
    table = scores.place(out).table if out else None
    if table and (old := artifacts.finished(table, header, overwrite=overwrite)):
        again = _by_step(artifacts.read_table(table, "scores").frame)
        said = (*scores.notes(table), "up to date")
        return scores.Result(_record(old, again), said, _lines(again, old["metrics"]))
    measured: dict[int, dict[str, float]] = {}
    for place, (step, path) in enumerate(found.items()):
        with tempfile.TemporaryDirectory(prefix="pathfm-") as scratch:

            def told(done: int, total: int, before: int = place) -> None:
                progress(before * total + done, len(found) * total)

            file = runs.embed_run(
                path,
                patches,
                Path(scratch),
                split=split,
                device=device,
                precision=precision,
                progress=told,
            )
            source = features.open_features(file)
            try:
                measured[step], _ = odcorr.timed(source, source.rows(split), device, None)
            except odcorr.TooFewRows as error:
                # A collapse that training came out of; the last export is what is judged.
                if step == max(found):
                    raise
                measured[step] = {"n": 0, "constant_rows": error.constant_rows}
    return _publish(measured, header, split or "", out)


def plan(
    run: Path, patches: Path | None, out: Path | None, split: str | None = None
) -> dict[str, Any]:
    """What `measure` would do.

    Raises:
        errors.InputError, errors.UsageError: as `measure`.
    """
    folder = run if run.is_dir() else run.parent
    return {**runs.plan(run, patches, out, split), "steps": list(runs.exported(folder))}


def _inputs(
    run: Path, patches: Path | None, split: str | None, precision: str
) -> tuple[dict[int, Path], artifacts.Header]:
    found = runs.exported(run if run.is_dir() else run.parent)
    images = runs.images(run, patches)
    ids = [f"checkpoint:{artifacts.read_header(path, 'checkpoint').id}" for path in found.values()]
    scored = {"images": images, "precision": precision}
    said = {**odcorr.settings(split), "every_export": True, "scored": scored}
    return found, artifacts.Header(kind="scores", parents=(images, *ids), settings=said)


def _publish(
    measured: Mapping[int, Mapping[str, float]],
    header: artifacts.Header,
    split: str,
    out: Path | None,
) -> scores.Result:
    last = dict(measured[max(measured)])
    rows: list[scores.Row] = [
        (name, split, step, value)
        for step, numbers in measured.items()
        for name, value in numbers.items()
    ]
    rows += [(name, split, None, value) for name, value in last.items()]
    header = artifacts.Header(
        kind=header.kind, parents=header.parents, settings=header.settings, metrics=last
    )
    collapsed = [step for step, numbers in measured.items() if "odcorr" not in numbers]
    notes = (
        *odcorr.notes(last),
        *(f"all embeddings of step {step} are constant" for step in collapsed),
    )
    document = {"notes": notes}
    record = (
        scores.write(out, scores.table(rows), header, document) if out else scores.unsaved(header)
    )
    return scores.Result(_record(record, measured), notes, _lines(measured, last))


def _record(
    record: Mapping[str, Any], measured: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    shown = [
        {"step": step, **{name: numbers[name] for name in SHOWN if name in numbers}}
        for step, numbers in measured.items()
    ]
    return {**record, "exports": shown}


def _by_step(frame: pl.DataFrame) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for step, name, value in frame.select("run", "metric", "value").drop_nulls().iter_rows():
        found.setdefault(step, {})[name] = value
    return found


def _lines(measured: Mapping[int, Mapping[str, float]], last: Mapping[str, float]) -> list[str]:
    width = len(str(max(measured)))
    steps = [f"step {step:>{width}}   {_line(numbers)}" for step, numbers in measured.items()]
    return [*steps, *odcorr.lines(last)]


def _line(numbers: Mapping[str, float]) -> str:
    if "odcorr" not in numbers:
        return f"all {numbers['constant_rows']:.0f} embeddings are constant"
    alpha = f"   alpha {numbers['alpha']:.2f}" if "alpha" in numbers else ""
    return f"ODCorr {numbers['odcorr']:.4f}   RankMe {numbers['rankme']:.1f}{alpha}"
