"""`pathfm pretrain`: tissue or patches to an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli import errors
from pathfm_cli.cli import options, output, pipe, progress


def pretrain(
    out: options.Out,
    recipe: Annotated[str, typer.Option(help="A preset (tiny, dino-vits16, ...) or a TOML file.")],
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="TISSUE", help="A tissue or patches artifact; else stdin is read."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="First weights: a run, a checkpoint, a timm name: model.init."),
    ] = None,
    phase: Annotated[
        int | None, typer.Option(min=1, help="2: the recipe's second phase; needs --init.")
    ] = None,
    where: Annotated[str | None, options.WHERE] = None,
    subset: Annotated[float | None, options.SUBSET] = None,
    distinct_patches: Annotated[
        int | None,
        typer.Option(min=0, help="Only so many patches, over and over: train.distinct_patches."),
    ] = None,
    set_: options.Settings = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=options.MAX_SEED, help="Seed of every random choice: train.seed."),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="LABELLED",
            help="Folder, table or data set to judge the teacher on: train.watch_data.",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Metrics for TensorBoard: train.tensorboard.")
    ] = False,
    gpus: Annotated[
        int, typer.Option("--gpus", "--procs", min=0, help="Processes; 0: one per GPU, else one.")
    ] = 0,
    device: options.Device = "auto",
    accumulate: Annotated[
        int, typer.Option(min=0, help="Parts of a process's batch; 0: by train.device_batch.")
    ] = 0,
    workers: Annotated[
        int, typer.Option(min=0, help="Reading processes per training process; 0 chooses.")
    ] = 0,
    patch_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep distinct patches on this local disk.")
    ] = None,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines; start the command on each.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Number of this machine, from 0.")] = 0,
    rdzv_endpoint: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where they meet: a free port of machine 0.")
    ] = "",
    cache: options.CacheFolder = None,
    cache_gb: options.CacheSize = options.CACHE_GB,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
    measure_s: options.Measure = options.MEASURE_S,
) -> int:
    r"""Train an encoder without labels, reading patches straight from the slides.

    The same command goes on from the last checkpoint. The result is a folder with
    teacher.safetensors and model.json, which plain timm loads.

    \b
    pathfm pretrain tissue.parquet --recipe tiny -o run/ --set train.steps=50
    pathfm mask slides.parquet -o t.parquet | pathfm pretrain --recipe dino-vits16 -o run/
    pathfm pretrain all.parquet --recipe dino-vits16 --phase 2 --init run/ -o run2/
    """
    from pathfm_cli import config
    from pathfm_cli.pretrain import launch, plan, run
    from pathfm_cli.pretrain import recipe as recipes
    from pathfm_cli.wsi import cache as tile_cache

    if launch.is_rank():
        _refuse_under_torchrun(source or [], starts=bool(gpus) or nnodes > 1)
        launch.become_rank(quiet=quiet)
    if cache is not None and not dry_run:
        tile_cache.use(cache, cache_gb)
    flags = {
        "model.init": init,
        "data.where": where,
        "data.subset": subset,
        "train.distinct_patches": distinct_patches,
        "train.watch_data": None if watch is None else _place(watch),
        "train.tensorboard": tensorboard or None,
        "train.seed": seed,
    }
    settings = recipes.load(recipe, [*(set_ or []), *config.assignments(flags)], phase)
    machine = run.Machine(
        processes=gpus,
        device=device,
        accumulate=accumulate,
        workers=workers,
        patch_cache=patch_cache,
        nodes=launch.Nodes(count=nnodes, rank=node_rank, endpoint=rdzv_endpoint),
        quiet=quiet,
    )
    size = run.check(out, settings, machine, overwrite=overwrite)
    slot = pipe.Slot(run.INPUTS)
    path = pipe.bind("pretrain", source or [], {"source": slot}, out=out)["source"]
    sink = output.Sink(json, quiet)
    if dry_run:
        found = plan.plan(
            *(path, out, settings, size), overwrite=overwrite, machine=machine, measure_s=measure_s
        )
        return sink.plan(found)
    with progress.track("pretrain", quiet=quiet or launch.is_rank(), detail=True) as report:
        done = run.pretrain(path, out, settings, machine, overwrite=overwrite, progress=report)
    if not launch.leads():
        return 0
    if done.up_to_date:
        output.note(f"pathfm: {out} is up to date")
    return sink.emit(done.record, plan.summary(out), f"pathfm odcorr {out}")


def _refuse_under_torchrun(source: list[str], *, starts: bool) -> None:
    """Refuse what cannot be meant in a process that torchrun started."""
    if starts:
        raise errors.UsageError(
            "torchrun has started the processes; --gpus and --nnodes start some too.",
            "torchrun --nproc-per-node 8 -m pathfm_cli pretrain t.parquet --recipe tiny -o run/",
        )
    if not source or "-" in source:
        raise errors.UsageError(
            "torchrun gives every process the same stdin, so none can read it.",
            "name the input: torchrun ... -m pathfm_cli pretrain t.parquet --recipe tiny -o run/",
        )


def _place(name: str) -> str:
    """A path holds wherever the run goes on, a data set's name stays."""
    return str(Path(name).absolute()) if Path(name).exists() else name
