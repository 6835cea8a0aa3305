"""`pathfm odcorr`: how different the embeddings of different images are, without labels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from pathfm_cli import errors
from pathfm_cli.cli import options, output, pipe, progress

HINT = "pathfm odcorr embeddings.parquet, or pathfm odcorr run/"


def odcorr(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="EMBEDDINGS|CHECKPOINT",
            help="Parquet, .npy, .safetensors; a run folder or an encoder it exported.",
        ),
    ] = None,
    patches: Annotated[
        Path | None, typer.Option(help="Patches for a checkpoint, instead of those of its run.")
    ] = None,
    every_export: Annotated[
        bool, typer.Option("--every-export", help="Of a run: all encoders it exported, by step.")
    ] = False,
    maximum: Annotated[
        float | None, typer.Option("--max", help="Fail (exit 5) when ODCorr is above this.")
    ] = None,
    minimum: Annotated[
        float | None, typer.Option("--min", help="Fail (exit 5) when ODCorr is below this.")
    ] = None,
    max_constant: Annotated[
        float | None,
        typer.Option(
            help="Fail (exit 5) when a larger share of embeddings is constant; .01 with any gate."
        ),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier result on the same images: scores, or JSON.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Fail (exit 5) when ODCorr is this much above the baseline."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Only this split; the paper uses test.")
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    r"""Measure ODCorr, RankMe and alpha-ReQ; fail a script when an encoder has collapsed.

    \b
    pathfm odcorr e.parquet --split test
    pathfm odcorr run/ --json --max 0.95 | jq .metrics.odcorr
    pathfm odcorr run/ --every-export --baseline old.json --tolerance 0.02
    """
    from pathfm_cli.tasks import features, gates, scores
    from pathfm_cli.tasks import odcorr as task

    limits = gates.limits(minimum, maximum, baseline, tolerance, max_constant)
    said = task.settings(split) | ({"every_export": True} if every_export else {})
    scores.check_free(out, said, overwrite=overwrite)
    if source is None and not pipe.has_stdin():
        raise errors.UsageError(
            "odcorr needs embeddings or a checkpoint: name it, or pipe it in.", HINT
        )
    slots = {"input": pipe.Slot(("embeddings", "checkpoint"), foreign=True)}
    path = pipe.bind("odcorr", [source] if source else [], slots, out=out)["input"]
    run = features.is_run(path)
    for flag, given in (("--patches", patches), ("--every-export", every_export)):
        if given and not run:
            raise errors.UsageError(f"{flag} goes with a run; {path} is none.", "leave it out")
    sink = output.Sink(as_json, quiet)
    how: dict[str, Any] = {"split": split, "device": device, "overwrite": overwrite}
    if run:
        from pathfm_cli.tasks import exports, runs

        library = exports if every_export else runs
        limits.comparable(split, runs.images(path, patches))
        if dry_run:
            return sink.plan(library.plan(path, patches, out, split))
        how |= {"precision": precision}
        measure = functools.partial(library.measure, path, patches, out, **how)
    else:
        opened = features.open_features(path)
        limits.comparable(split, opened.images)
        if dry_run:
            return sink.plan(task.plan(opened, out, split))
        measure = functools.partial(task.odcorr, opened, out, **how)
    try:
        with progress.track("embed" if run else "odcorr", quiet=quiet) as report:
            result = measure(progress=report)
    except task.TooFewRows as error:
        limits.check_constant(error.rows, error.constant_rows)
        raise
    for note in result.notes:
        output.note(f"pathfm odcorr: {note}")
    code = sink.emit(result.record, result.lines)
    metrics = result.record["metrics"]
    constant = int(metrics["constant_rows"])
    rows = int(metrics["n"]) + constant
    limits.same_rows(rows)
    limits.check_constant(rows, constant)
    limits.check(metrics["odcorr"])
    return code
