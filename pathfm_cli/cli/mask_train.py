"""`pathfm mask-train`: annotated slides to a U-Net that finds tissue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli.cli import options, output, pipe, progress


def mask_train(
    out: options.Out,
    annotations: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of NAME.geojson or NAME.png (masks).")
    ],
    slides: Annotated[list[str] | None, typer.Argument(help="A slides artifact, or -.")] = None,
    images: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of thumbnails, not slides.")
    ] = None,
    image_mpp: Annotated[
        float | None, typer.Option(help="Resolution of the thumbnails, um/px.")
    ] = None,
    mpp: Annotated[float, typer.Option(help="Resolution the network works at, um/px.")] = 8.0,
    steps: Annotated[int, typer.Option(help="Steps of 8 scenes each.")] = 800,
    precision: Annotated[str, typer.Option(help="bf16 or fp32: arithmetic while training.")] = (
        "bf16"
    ),
    seed: options.Seed = 0,
    device: options.Device = "auto",
    workers: options.Workers = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> int:
    r"""Train the tissue U-Net on your own outlines: scenes are cut from them and made difficult.

    \b
    pathfm mask-train slides.parquet --annotations qupath/ -o tissue.safetensors
    pathfm mask-train --images thumbs/ --image-mpp 8 --annotations masks/ -o tissue.safetensors
    """
    from pathfm_cli import artifacts, errors
    from pathfm_cli.tissue import pairs, train

    config = train.TrainConfig(mpp=mpp, steps=steps, seed=seed, precision=precision)
    train.check(out, config, device, overwrite=overwrite)
    pairs.check(annotations, images, image_mpp, slides)
    sink = output.Sink(json, quiet)
    try:
        if images is not None and image_mpp is not None:
            total = len(pairs.pictures(images))
            found = list(pairs.of_images(images, annotations, image_mpp, mpp))
        else:
            slot = pipe.Slot(("slides", "tissue"))
            path = pipe.bind("mask-train", slides or [], {"slides": slot}, out=out)
            total = artifacts.read_table(path["slides"]).frame.height
            found = list(pairs.of_slides(path["slides"], annotations, mpp))
    except errors.SlideError as error:
        raise errors.InputError(f"{error}.", f"mend it, or take it out of {annotations}") from error
    planned = train.plan(found, out, config, overwrite=overwrite)
    if len(found) < total:
        output.note(f"pathfm: {total - len(found)} of {total} have no annotation or an error")
    if dry_run:
        return sink.plan(planned)
    if not planned["steps"]:
        output.note(f"pathfm: {out} is up to date")
    with progress.track("mask-train", quiet=quiet) as report:
        record = train.train(
            *(found, out, config),
            device=device,
            workers=workers,
            overwrite=overwrite,
            progress=report,
        )
    summary = (f"{out}: a tissue U-Net from {len(found)} annotated slides",)
    return sink.emit(record, summary, f"pathfm mask slides.parquet --weights {out} -o t.parquet")
