"""`pathfm report`: runs and scores as one HTML file to look at."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pathfm_cli.cli import options, output, pipe


def report(
    out: options.Out,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Run folders, scores, embeddings; - reads the pipe."),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    r"""Draw runs, scores and embeddings in one HTML file that needs no network.

    Several together give a leaderboard, learning curves side by side, and balanced accuracy
    against ODCorr and RankMe.

    \b
    pathfm report run/ -o run.html
    pathfm report run1/ run2/ probe1/ odcorr1/ e.parquet -o all.html
    """
    from pathfm_cli import errors
    from pathfm_cli.report import inputs, write

    write.check(out, overwrite=overwrite)
    handles = pipe.lines("report", paths or [], "runs, scores or embeddings")
    named = [handle.path for handle in handles]
    if any(os.path.realpath(path) == os.path.realpath(out) for path in named):
        raise errors.OutputClash(f"{out} is an input: it would replace itself.", "another -o")
    sink = output.Sink(as_json, quiet)
    about = {"schema": write.SCHEMA, "path": os.path.abspath(out)}
    if dry_run:
        given = inputs.open_inputs(named)
        return sink.plan({"inputs": [str(one.path) for one in given], "writes": [about["path"]]})
    given = write.report(named, out, overwrite=overwrite)
    said = [f"{about['path']}: {', '.join(one.name for one in given)}"]
    return sink.emit({**about, "inputs": len(given)}, said)
