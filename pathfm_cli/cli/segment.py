"""`pathfm segment`: semantic segmentation with a frozen encoder and a light decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli.cli import encoder, options, output, progress


def segment(
    out: options.Out,
    images: Annotated[
        Path, typer.Option(help="Table (CSV, TSV, Parquet): image, label, split, and id if named.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Run folder, checkpoint file, timm name, or random/TIMM_NAME."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="timm name of a checkpoint file.")] = None,
    decoder: Annotated[str, typer.Option(help="linear: one layer on the patch tokens.")] = "linear",
    instances: Annotated[
        bool, typer.Option("--instances", help="Labels number objects; all are foreground.")
    ] = False,
    crops: Annotated[int, typer.Option(help="Random crops to train on.")] = 512,
    epochs: Annotated[int, typer.Option(help="Passes over the crops.")] = 20,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> int:
    r"""Train a decoder on a frozen encoder and report every Dice by its name.

    \b
    pathfm segment --images index.csv --instances --model run/ -o segmentation/
    pathfm segment --images index.csv --model random/vit_small_patch16_224 -o baseline/
    """
    from pathfm_cli.tasks import masks, segmentation

    config = segmentation.Config(
        decoder=decoder,
        instances=instances,
        crops=crops,
        seed=seed,
        training=segmentation.Training(epochs=epochs),
    )
    segmentation.check_free(out, overwrite=overwrite)
    items = masks.read_table(images)
    segmentation.split(items)
    _, spec = encoder.bind("segment", [], {}, model)
    sink = output.Sink(json, quiet)
    if dry_run:
        return sink.plan(segmentation.plan(items, spec, out, config))
    network = encoder.load(
        spec,
        arch=arch,
        seed=seed,
        device=device,
        precision=precision,
        image_size_px=config.size_px,
    )
    from pathfm_cli.tasks import segment as task

    with progress.track("segment", quiet=quiet) as report:
        result, failed = task.segment(
            items, network, out, config, overwrite=overwrite, progress=report
        )
    for note in result.notes:
        output.note(f"pathfm segment: {note}")
    output.failures(failed, len(items), "images")
    return sink.emit(result.record, result.lines)
