"""`pathfm segment`: semantic segmentation with a frozen encoder and a light decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathfm_cli import errors
from pathfm_cli.cli import encoder, options, output, progress

if TYPE_CHECKING:
    from pathfm_cli.tasks import masks


def segment(
    out: options.Out,
    images: Annotated[
        Path | None, typer.Option(help="Table (CSV, TSV, Parquet): image, label, split, maybe id.")
    ] = None,
    task: options.Task = None,
    data: options.Data = None,
    partial: options.Partial = False,
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
    pathfm segment --task consep --data data/consep --model kaiko-s16 -o segmentation/
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
    if images is None or task or data or partial:
        items = _items(images, task, data, partial)
    else:
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
    from pathfm_cli.tasks import segment as library

    with progress.track("segment", quiet=quiet) as report:
        result, failed = library.segment(
            items, network, out, config, overwrite=overwrite, progress=report
        )
    for note in result.notes:
        output.note(f"pathfm segment: {note}")
    output.failures(failed, len(items), "images")
    return sink.emit(result.record, result.lines)


def _items(
    images: Path | None, task: str | None, data: Path | None, partial: bool
) -> list[masks.Item]:
    """Images and label maps of a data set.

    Raises:
        errors.UsageError: neither or both of table and data set, or one that is not segmented.
    """
    from pathfm_cli.tasks.datasets import catalogue, consep

    if task is None or images is not None:
        raise errors.UsageError("segment needs --images or --task, one of them.", "--task consep")
    dataset = catalogue.find(task)
    if not isinstance(dataset, consep.Consep):
        raise errors.UsageError(f"{task} has no label maps.", "--task consep, or probe --task")
    return dataset.items(catalogue.locate(task, data), partial=partial)
