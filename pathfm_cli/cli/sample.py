"""`pathfm sample`: tissue to a fixed set of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli import cluster, errors
from pathfm_cli.cli import options, output, pipe, progress


def sample(
    out: options.Out,
    tissue: Annotated[list[str] | None, typer.Argument(help="A tissue artifact, or -.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Draw this many patches.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Take every cell of a grid.")] = False,
    mpp: Annotated[str, typer.Option(help="Resolutions in um/px, as in 0.25,0.5,1,2.")] = "0.5",
    size: Annotated[int, typer.Option(help="Side of a patch in pixels at its mpp.")] = 256,
    min_tissue: Annotated[float, typer.Option(help="Least share of tissue in a patch.")] = 0.4,
    stride: Annotated[
        int | None, typer.Option(help="Step of the grid in pixels; without it the size.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="Slides: uniform, or by tissue area.")] = "uniform",
    weights: Annotated[str, typer.Option(help="Slides by the weights in this column.")] = "",
    mpp_weights: Annotated[
        str, typer.Option(help="Relative frequency of each mpp, as in 1,2,2,1; else equal.")
    ] = "",
    where: options.Where = "",
    subset: options.Subset = 1.0,
    subset_seed: Annotated[
        int,
        typer.Option(min=0, max=options.MAX_SEED, help="Seed of the slides that --subset takes."),
    ] = 0,
    seed: options.Seed = 0,
    preview: Annotated[
        Path | None, typer.Option(help="A PNG to write: a contact sheet.", dir_okay=False)
    ] = None,
    dask: options.Dask = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> int:
    r"""Choose patches with enough tissue: at random, or every cell of a grid.

    \b
    pathfm sample tissue.parquet --n 10000 --mpp 0.25,0.5,1,2 -o patches.parquet
    pathfm sample tissue.parquet --grid --mpp 0.5 -o grid.parquet --preview sheet.png
    """
    from pathfm_cli.data import pictures
    from pathfm_cli.data import sample as library

    if dask:
        cluster.check(dask)
        if not grid:
            raise errors.UsageError("--dask spreads a grid over slides.", "--grid, or no --dask")
    config, choice = library.request(
        mpp,
        size,
        min_tissue,
        strategy,
        weights,
        n=n,
        seed=seed,
        gridded=grid,
        stride_px=stride,
        mpp_weights=mpp_weights,
        where=where,
        subset=subset,
        subset_seed=subset_seed,
    )
    library.check(out, config, choice, overwrite=overwrite)
    if preview:
        pictures.check_free(preview, overwrite=overwrite)
    slot = pipe.Slot(("tissue",))
    path = pipe.bind("sample", tissue or [], {"tissue": slot}, out=out)["tissue"]
    sink = output.Sink(json, quiet)
    if dry_run:
        return sink.plan(library.plan(path, out, config, choice, overwrite=overwrite))
    with progress.track("sample", quiet=quiet) as report, cluster.spread(dask) as spread:
        done = library.sample(path, out, config, choice, overwrite, report, spread)
    for sentence in done.notes:
        output.note(f"pathfm: {sentence}")
    lost = pictures.contact_sheet(out, preview) if preview else []
    output.failures(lost, pictures.MAX_CELLS, "patches of the preview")
    code = sink.emit(done.record, done.summary, f"pathfm embed {out} --model run/ -o e.parquet")
    return errors.PARTIAL if lost else code
