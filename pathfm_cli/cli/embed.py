"""`pathfm embed`: images and an encoder to embeddings."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pathfm_cli import cluster, errors
from pathfm_cli.cli import encoder, options, output, pipe, progress


def _column(what: str) -> Any:
    return typer.Option(metavar="COLUMN", help=f"Column of the table or slides with the {what}.")


def embed(
    out: options.Out,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Patches or tissue; a run may stand beside it.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder (CLASS/*, SPLIT/CLASS/*) or table of images.")
    ] = None,
    task: options.Task = None,
    data_root: options.Data = None,
    partial: options.Partial = False,
    model: Annotated[
        str | None,
        typer.Option(help="Run folder, checkpoint file, timm name, or random/TIMM_NAME."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="timm name of a checkpoint file.")] = None,
    seed: options.Seed = 0,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the encoder's input; 224, or a run's own.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Channel mean in 0..1: 0.5 or R,G,B.")] = None,
    std: Annotated[str | None, typer.Option(help="Channel deviation: 0.5 or R,G,B.")] = None,
    embedding: Annotated[
        str | None,
        typer.Option(help="cls, cls+mean or patch (all patch tokens); else the encoder's own."),
    ] = None,
    label: Annotated[str | None, _column("class")] = None,
    split: Annotated[str | None, _column("split")] = None,
    group: Annotated[str | None, _column("group, as patients")] = None,
    slide: Annotated[str | None, _column("slide")] = None,
    mpp: Annotated[str | None, typer.Option(help="Grid over tissue: um/px, as 0.5,1.")] = None,
    size: Annotated[int | None, typer.Option(help="Grid: side of a patch, px (256).")] = None,
    stride: Annotated[int | None, typer.Option(help="Grid: distance, px (the size).")] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Grid: least tissue (0.4).")] = None,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Images in one forward pass; 0: what fits the device.")
    ] = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: options.Workers = 0,
    dask: options.Dask = None,
    max_failed: options.MaxFailed = None,
    cache: options.CacheFolder = None,
    cache_gb: options.CacheSize = options.CACHE_GB,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
    measure_s: options.Measure = options.MEASURE_S,
) -> int:
    r"""Embed patches of slides, a grid over tissue, or image files with any encoder.

    \b
    pathfm sample t.parquet --n 1000 -o p.parquet | pathfm embed --model run/ -o e.parquet
    pathfm embed --images tiles/ --model random/vit_small_patch16_224 -o e.parquet
    pathfm embed --task pcam --data data/pcam --model kaiko-s16 -o e.parquet
    """
    from pathfm_cli.model import zoo
    from pathfm_cli.pretrain import launch
    from pathfm_cli.tasks import request, source
    from pathfm_cli.wsi import cache as tile_cache

    zoo.check_rule(embedding)
    if dask:
        cluster.check(dask)
        _refuse_spread(images_or_task=bool(images or task))
        if cache is not None and not dask.startswith(cluster.LOCAL):
            raise errors.UsageError(
                "--cache is for this machine; the workers have PATHFM_CACHE.", "leave out --cache"
            )
    if cache is not None and not dry_run:
        tile_cache.use(cache, cache_gb)
    request.check(out, overwrite=overwrite)
    request.refuse_images(inputs or [])
    columns = source.Columns(label=label, split=split, group=group, slide=slide)
    grid = request.grid(mpp, size, stride, min_tissue)
    data = request.open_named(images, task, data_root, columns, grid, partial=partial)
    slots = {} if data else {"images": pipe.Slot(("patches", "tissue"))}

    how: dict[str, Any] = {
        "arch": arch,
        "seed": seed,
        "device": encoder.own_device(device),
        "precision": precision,
        "image_size_px": image_size,
        "mean": encoder.channels("--mean", mean),
        "std": encoder.channels("--std", std),
        "embedding": embedding,
    }
    # A wrong model must not come to light only when the command on the left has finished.
    waits = ("-" in (inputs or []) or not (inputs or images or task)) and pipe.has_stdin()
    if waits and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise errors.UsageError(
            "torchrun gives every process the same stdin, so none can read it.",
            "name the input: torchrun ... -m pathfm_cli embed p.parquet --model run/ -o e.parquet",
        )
    network = encoder.load(model, **how) if model and waits and not dry_run else None
    bound, spec = encoder.bind("embed", inputs or [], slots, model, out)
    data = data or request.open_places(bound["images"], columns, grid)
    for sentence in data.notes if launch.leads() else ():
        output.note(f"pathfm: {sentence}")
    sink = output.Sink(json, quiet)
    if dry_run and not measure_s:
        return sink.plan(request.plan(data, spec, out))
    network = network or encoder.load(spec, **how)
    from pathfm_cli.tasks import apart, rehearsal
    from pathfm_cli.tasks import embed as library

    reading = library.Reading(batch_size=batch_size, workers=workers, max_failed=max_failed)
    if dry_run:
        tried = rehearsal.rehearse(data, network, reading, measure_s)
        alone = {"tried_on": "this process alone; the work will be spread"} if dask else {}
        return sink.plan(request.plan(data, spec, out) | tried | alone)
    with progress.track("embed", quiet=quiet) as report, cluster.spread(dask) as spread:
        compute = None
        if spread:
            opening = functools.partial(
                request.open_places, bound["images"].absolute(), columns, grid
            )
            job = apart.job(opening, spec, how, data, network, reading)
            compute = apart.spread(job, spread, data, network.shape)
        done = library.embed(
            data, network, out, reading, overwrite=overwrite, progress=report, compute=compute
        )
    if not launch.leads():
        return 0
    if not done.fresh:
        output.note(f"pathfm: {out} is up to date")
    output.failures(done.failures, done.record["rows"], data.what)
    return sink.emit(done.record, library.summary(done, data, network), f"pathfm odcorr {out}")


def _refuse_spread(*, images_or_task: bool) -> None:
    """Refuse --dask where the workers could not find the images, or torchrun spreads already."""
    if images_or_task:
        raise errors.UsageError(
            "--dask spreads patches of slides, not image files.", "leave out --dask"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise errors.UsageError("torchrun spreads the work already.", "leave out --dask")
