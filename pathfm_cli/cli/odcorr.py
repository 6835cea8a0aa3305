"""`pathfm odcorr`: how different the embeddings of different images are, without labels."""

from __future__ import annotations

from typing import Annotated

import typer

from pathfm_cli.cli import options, output, pipe, progress


def odcorr(
    embeddings: Annotated[
        str | None, typer.Argument(help="Embeddings (Parquet, .npy, .safetensors).")
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
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    r"""Measure ODCorr and RankMe of embeddings; fail a script when they collapsed.

    \b
    pathfm odcorr e.parquet --split test
    pathfm odcorr e.parquet --json --max 0.5 | jq .metrics.odcorr
    """
    from pathfm_cli.tasks import features, scores
    from pathfm_cli.tasks import odcorr as task

    task.check_limits(minimum, maximum)
    scores.check_free(out, overwrite=overwrite)
    given = [embeddings] if embeddings else []
    slots = {"embeddings": pipe.Slot(("embeddings",), foreign=True)}
    source = features.open_features(pipe.bind("odcorr", given, slots)["embeddings"])
    sink = output.Sink(as_json, quiet)
    if dry_run:
        return sink.plan(task.plan(source, out, split))
    with progress.track("odcorr", quiet=quiet) as report:
        result = task.odcorr(source, out, split=split, overwrite=overwrite, progress=report)
    for note in result.notes:
        output.note(f"pathfm odcorr: {note}")
    code = sink.emit(result.record, result.lines)
    task.gate(result.record["metrics"]["odcorr"], minimum, maximum)
    return code
