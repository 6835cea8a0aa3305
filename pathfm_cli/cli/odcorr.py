"""`pathfm odcorr`: how different the embeddings of different images are, without labels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli import errors
from pathfm_cli.cli import options, output, pipe, progress


def odcorr(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="EMBEDDINGS|RUN", help="Parquet, .npy, .safetensors, or a run folder."
        ),
    ] = None,
    patches: Annotated[
        Path | None, typer.Option(help="Patches for a run, instead of those it recorded.")
    ] = None,
    maximum: Annotated[
        float | None, typer.Option("--max", help="Fail (exit 5) when ODCorr is above this.")
    ] = None,
    minimum: Annotated[
        float | None, typer.Option("--min", help="Fail (exit 5) when ODCorr is below this.")
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
    r"""Measure ODCorr and RankMe of embeddings or of a run; fail a script when they collapsed.

    \b
    pathfm odcorr e.parquet --split test
    pathfm odcorr run/ --json --max 0.5 | jq .metrics.odcorr
    """
    from pathfm_cli.tasks import features, scores
    from pathfm_cli.tasks import odcorr as task

    task.check_limits(minimum, maximum)
    scores.check_free(out, task.settings(split), overwrite=overwrite)
    slots = {"input": pipe.Slot(("embeddings", "checkpoint"), foreign=True)}
    path = pipe.bind("odcorr", [source] if source else [], slots, out=out)["input"]
    run = features.is_run(path)
    if patches and not run:
        raise errors.UsageError(f"--patches goes with a run; {path} is none.", "leave it out")
    sink = output.Sink(as_json, quiet)
    with tempfile.TemporaryDirectory(prefix="pathfm-") as scratch:
        if run:
            from pathfm_cli.tasks import runs

            if dry_run:
                return sink.plan(runs.plan(path, patches, out))
            with progress.track("embed", quiet=quiet) as report:
                path = runs.embed_run(
                    path,
                    patches,
                    Path(scratch),
                    device=device,
                    precision=precision,
                    progress=report,
                )
        opened = features.open_features(path)
        if dry_run:
            return sink.plan(task.plan(opened, out, split))
        with progress.track("odcorr", quiet=quiet) as report:
            result = task.odcorr(opened, out, split=split, overwrite=overwrite, progress=report)
    for note in result.notes:
        output.note(f"pathfm odcorr: {note}")
    code = sink.emit(result.record, result.lines)
    task.gate(result.record["metrics"]["odcorr"], minimum, maximum)
    return code
