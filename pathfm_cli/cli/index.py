"""`pathfm index`: slide files to a `slides` artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli import cluster, disk, errors
from pathfm_cli.cli import options, output, pipe, progress


def index(
    out: options.Out,
    slides: Annotated[
        list[str] | None,
        typer.Argument(help="Slides, folders, globs, URLs, tables of paths; - reads stdin."),
    ] = None,
    gdc_manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TCGA slides, read from the open bucket.")
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="CSV, TSV or Parquet joined by slide, filename or path.")
    ] = None,
    mpp_override: Annotated[
        list[str] | None,
        typer.Option(metavar="[SLIDE=]MPP", help="Set one slide's mpp, or all that lack one."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Store paths relative to this folder.")] = None,
    deidentify_check: Annotated[
        bool, typer.Option("--deidentify-check", help="Warn where metadata carries identifiers.")
    ] = False,
    max_failed: options.MaxFailed = None,
    workers: options.Workers = 0,
    dask: options.Dask = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> int:
    r"""List slides: levels, mpp and where every tile lies, from the headers only.

    \b
    pathfm index slides/ -o s.parquet
    find . -name '*.svs' | pathfm index - -o s.parquet --metadata cases.csv
    pathfm index s3://bucket/slides/ -o s.parquet
    """
    from pathfm_cli import artifacts
    from pathfm_cli.data import index as library
    from pathfm_cli.data import plan as planning

    if dask:
        cluster.check(dask)
    disk.check_place(out)
    artifacts.check_replaceable(out)
    settings = (out, metadata, mpp_override or (), root)
    planning.check(*settings, overwrite=overwrite, manifest=gdc_manifest)
    handles = pipe.lines("index", slides or (), "slides") if slides or not gdc_manifest else []
    named = [handle.path for handle in handles if handle.kind is None]
    if not named and not gdc_manifest:
        raise errors.InputError("stdin named no slide.", "find . -name '*.svs' | pathfm index -")
    plan = planning.prepare(named, *settings, overwrite=overwrite, manifest=gdc_manifest)
    sink = output.Sink(json, quiet)
    if dry_run:
        return sink.plan(plan.summary())
    with progress.track("index", quiet=quiet) as report, cluster.spread(dask) as spread:
        done = library.run(
            plan, workers=workers, max_failed=max_failed, spread=spread, progress=report
        )
    for sentence in done.notes:
        output.note(f"pathfm: {sentence}")
    output.failures(done.failures, len(plan.files), "slides")
    if deidentify_check:
        from pathfm_cli.data import identifiers

        for sentence in identifiers.sentences(plan.files, workers):
            output.note(f"pathfm: {sentence}")
    if done.hint:
        output.note(f"hint: {done.hint}")
    return sink.emit(done.record, done.summary, f"pathfm mask {out} -o tissue.parquet")
