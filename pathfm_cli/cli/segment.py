"""`pathfm segment`: semantic segmentation with a frozen encoder and a light decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathfm_cli import errors
from pathfm_cli.cli import encoder, options, output, progress, regions

if TYPE_CHECKING:
    from pathfm_cli.tasks import masks


def segment(
    out: options.Out,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="With --apply: patches or tissue.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Table: image, label, split, maybe id; or folder SPLIT/images, /labels."),
    ] = None,
    task: options.Task = None,
    data: options.Data = None,
    partial: options.Partial = False,
    model: Annotated[
        str | None,
        typer.Option(help="Run folder, checkpoint file, timm name, or random/TIMM_NAME."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="timm name of a checkpoint file.")] = None,
    decoder: Annotated[
        str, typer.Option(help="linear, conv, or mask2former, which needs pathfm[segment].")
    ] = "linear",
    features: Annotated[
        str, typer.Option(help="Patch tokens post-norm or pre-norm: after or before the last norm.")
    ] = "post-norm",
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes, background first, or a file of them.")
    ] = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="Labels number objects; all are foreground.")
    ] = False,
    boundaries: Annotated[
        bool, typer.Option("--boundaries", help="Labels number objects: inside and boundary.")
    ] = False,
    crops: Annotated[int, typer.Option(help="Random crops to train on.")] = 512,
    size: Annotated[int, typer.Option(min=1, help="Side of crops and windows, px.")] = 224,
    stride: Annotated[int, typer.Option(min=1, help="Distance of test windows, px.")] = 194,
    epochs: Annotated[int | None, typer.Option(help="Passes over the crops (20).")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Crops a step (16).")] = None,
    lr: Annotated[float | None, typer.Option(help="First learning rate (1e-3).")] = None,
    runs: Annotated[int, typer.Option(help="Decoders to train; the mean is the score.")] = 1,
    keep_converged: Annotated[
        bool,
        typer.Option("--keep-converged", help="Train until that many have converged; all listed."),
    ] = False,
    trained: Annotated[
        Path | None,
        typer.Option("--apply", help="Use the decoder of this result folder on slides instead."),
    ] = None,
    mpp: Annotated[
        str | None, typer.Option(help="With --apply to tissue: um/px of the training images.")
    ] = None,
    geojson: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="With --apply: folder for polygons that QuPath opens."),
    ] = None,
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
    pathfm segment --task consep --model kaiko-s16 --decoder mask2former --runs 3 \\
      --keep-converged -o consep/
    pathfm segment tissue.parquet --apply segmentation/ --model run/ --mpp 0.5 \\
      -o nuclei.parquet --geojson qupath/
    """
    from pathfm_cli.tasks import segmentation

    sink = output.Sink(json, quiet)
    how = {"arch": arch, "seed": seed, "device": device, "precision": precision}
    if trained:
        _refuse({"--images": images, "--task": task, "--instances": instances})
        return regions.apply(
            *(trained, inputs or [], model, mpp, geojson, out, how, sink),
            overwrite=overwrite,
            quiet=quiet,
            dry_run=dry_run,
        )
    if given := [name for name, v in {"--mpp": mpp, "--geojson": geojson}.items() if v] + (
        inputs or []
    ):
        raise errors.UsageError(f"{given[0]} goes with --apply.", "--apply RESULT_FOLDER")
    config = segmentation.Config(
        decoder=decoder,
        features=features,
        labels=_meaning(instances, boundaries, classes),
        crops=crops,
        size_px=size,
        stride_px=stride,
        runs=runs,
        keep_converged=keep_converged,
        seed=seed,
        training=segmentation.training(decoder, epochs=epochs, batch_size=batch_size, lr=lr),
    )
    segmentation.check_free(out, overwrite=overwrite)
    items, named = _items(images, task, data, partial)
    names = _names(classes) or (named if config.labels == "classes" else ())
    config = dataclasses.replace(config, classes=names)
    segmentation.split(items)
    _, spec = encoder.bind("segment", [], {}, model)
    if dry_run:
        return sink.plan(segmentation.plan(items, spec, out, config))
    network = encoder.load(spec, image_size_px=config.size_px, **how)
    from pathfm_cli.tasks import segment as library

    with progress.track("segment", quiet=quiet) as report:
        result, failed = library.segment(
            items, network, out, config, overwrite=overwrite, progress=report
        )
    for note in result.notes:
        output.note(f"pathfm segment: {note}")
    output.failures(failed, len(items), "images")
    return sink.emit(result.record, result.lines)


def _refuse(given: Mapping[str, object]) -> None:
    """Raise if an option of training stands beside `--apply`."""
    if named := [flag for flag, value in given.items() if value]:
        raise errors.UsageError(f"{named[0]} does not go with --apply.", f"leave out {named[0]}")


def _meaning(instances: bool, boundaries: bool, classes: str | None) -> str:
    """What the numbers of label maps say, a name in `labelmaps.MEANINGS`."""
    given = {"--instances": instances, "--boundaries": boundaries, "--classes": classes}
    named = [flag for flag, value in given.items() if value]
    if len(named) > 1:
        raise errors.UsageError(f"{named[0]} and {named[1]} exclude each other.", named[0])
    return "boundaries" if boundaries else "objects" if instances else "classes"


def _names(classes: str | None) -> tuple[str, ...]:
    from pathfm_cli.tasks import masks

    if classes is None:
        return ()
    if Path(classes).is_file():
        return masks.read_classes(Path(classes))
    return masks.check_classes([name.strip() for name in classes.split(",")])


def _items(
    images: Path | None, task: str | None, data: Path | None, partial: bool
) -> tuple[list[masks.Item], tuple[str, ...]]:
    """Images and label maps of a table, a folder or a data set, and the classes it names.

    Raises:
        errors.UsageError: neither or both of table and data set, or one that is not segmented.
    """
    from pathfm_cli.tasks import masks
    from pathfm_cli.tasks.datasets import catalogue, consep

    if images and not (task or data or partial):
        return masks.read_folder(images) if images.is_dir() else (masks.read_table(images), ())
    if task is None or images is not None:
        raise errors.UsageError("segment needs --images or --task, one of them.", "--task consep")
    dataset = catalogue.find(task)
    if not isinstance(dataset, consep.Consep):
        raise errors.UsageError(f"{task} has no label maps.", "--task consep, or probe --task")
    items = dataset.items(catalogue.locate(task, data), partial=partial)
    return items, dataset.facts.classes
