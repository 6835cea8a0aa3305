"""`pathfm segment`: semantic segmentation with a frozen encoder and a light decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli import errors
from pathfm_cli.cli import encoder, options, output, progress, regions


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
    pathfm segment --task consep --model kaiko-s16 --decoder mask2former --runs 3 \
      --keep-converged -o consep/
    pathfm segment tissue.parquet --apply segmentation/ --model run/ --mpp 0.5 \
      -o nuclei.parquet --geojson qupath/
    """
    from pathfm_cli.tasks import segmentation, wanted

    sink = output.Sink(json, quiet)
    how = {"arch": arch, "seed": seed, "device": device, "precision": precision}
    if trained:
        named: dict[str, object] = {
            "--images": images,
            "--task": task,
            "--data": data,
            "--partial": partial,
        }
        named |= {"--instances": instances, "--boundaries": boundaries, "--classes": classes}
        named |= {"--decoder": decoder != "linear", "--features": features != "post-norm"}
        named |= {"--crops": crops != 512, "--size": size != 224, "--stride": stride != 194}
        named |= {"--epochs": epochs, "--batch-size": batch_size, "--lr": lr}
        named |= {"--runs": runs != 1, "--keep-converged": keep_converged}
        _refuse(named, "does not go")
        return regions.apply(
            *(trained, inputs or [], model, mpp, geojson, out, how, sink),
            overwrite=overwrite,
            quiet=quiet,
            dry_run=dry_run,
        )
    _refuse({"--mpp": mpp, "--geojson": geojson, **dict.fromkeys(inputs or [], True)}, "goes")
    config = segmentation.Config(
        decoder=decoder,
        features=features,
        labels=wanted.meaning(instances, boundaries, classes),
        crops=crops,
        size_px=size,
        stride_px=stride,
        runs=runs,
        keep_converged=keep_converged,
        seed=seed,
        training=segmentation.training(decoder, epochs=epochs, batch_size=batch_size, lr=lr),
    )
    segmentation.check_free(out, overwrite=overwrite)
    items, listed, notes = wanted.items(images, task, data, partial)
    for note in notes:
        output.note(f"pathfm segment: {note}")
    names = wanted.classes(classes) or (listed if config.labels == "classes" else ())
    config = dataclasses.replace(config, classes=names)
    segmentation.split(items)
    _, spec = encoder.bind("segment", [], {}, model)
    if dry_run:
        return sink.plan(segmentation.plan(items, spec, out, config))
    try:
        network = encoder.load(spec, image_size_px=config.size_px, **how)
    except errors.UsageError as error:
        # Here the side of the input is that of the crops.
        hint = error.hint.replace("--image-size", "--size")
        raise errors.UsageError(str(error), hint) from error
    from pathfm_cli.tasks import segment as library

    with progress.track("segment", quiet=quiet) as report:
        result, failed = library.segment(
            items, network, out, config, overwrite=overwrite, progress=report
        )
    for note in result.notes:
        output.note(f"pathfm segment: {note}")
    output.failures(failed, len(items), "images")
    return sink.emit(result.record, result.lines)


def _refuse(given: Mapping[str, object], rule: str) -> None:
    """Raise if anything was given that goes, or does not go, with `--apply`."""
    if named := [flag for flag, value in given.items() if value]:
        raise errors.UsageError(
            f"{named[0]} {rule} with --apply.", "--apply RESULT_FOLDER, or leave it out"
        )
