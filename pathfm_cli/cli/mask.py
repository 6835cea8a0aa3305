"""`pathfm mask`: slides to their tissue polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathfm_cli import cluster, disk, errors
from pathfm_cli.cli import options, output, pipe, progress


def mask(
    out: options.Out,
    slides: Annotated[list[str] | None, typer.Argument(help="A slides artifact, or -.")] = None,
    method: Annotated[str | None, typer.Option(help="unet (the default) or otsu.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A U-Net of `pathfm mask-train`.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (the default), cpu, cuda, cuda:N or mps.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="um/px of the thumbnail; the network has its own.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Take the outlines in this folder: SLIDE.geojson.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Annotation class that is tissue; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Annotation class that is not, too; repeatable.")
    ] = None,
    min_object: Annotated[
        float | None, typer.Option(help="Drop smaller pieces, um2 (20,000).")
    ] = None,
    min_hole: Annotated[
        float | None, typer.Option(help="Fill smaller holes, um2 (10,000).")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Move outlines at most so far, um (8).")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for outlines and index.html.")
    ] = None,
    geojson: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for outlines that QuPath opens.")
    ] = None,
    max_failed: options.MaxFailed = None,
    workers: options.Workers = 0,
    dask: options.Dask = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dry_run: options.DryRun = False,
) -> int:
    r"""Find the tissue of every slide: polygons in level-0 pixels, as GeoParquet.

    \b
    pathfm mask slides.parquet -o tissue.parquet --preview outlines/
    pathfm mask slides.parquet -o corrected.parquet --annotations qupath/
    """
    from pathfm_cli.data import contact, finders, pictures, polygons
    from pathfm_cli.data import geojson as shapes
    from pathfm_cli.data import mask as library

    if dask:
        cluster.check(dask)
    asked = {"min_object_um2": min_object, "min_hole_um2": min_hole, "tolerance_um": tolerance}
    given = {name: value for name, value in asked.items() if value is not None}
    cleaning = polygons.Cleaning(**given) if given else None
    finder = finders.choose(
        *(method, mpp, weights, device, annotations, include or (), exclude or (), cleaning)
    )
    library.check(out, finder, overwrite=overwrite)
    for folder in filter(None, (preview, geojson)):
        disk.check_place(folder / "slide")
    slot = pipe.Slot(("slides",))
    path = pipe.bind("mask", slides or [], {"slides": slot}, out=out)["slides"]
    sink = output.Sink(json, quiet)
    names = library.slide_ids(path)
    if preview:
        contact.check(preview, overwrite=overwrite)
        for name in names:
            pictures.check_free(shapes.file_for(preview, name, ".png"), overwrite=overwrite)
    if geojson:
        shapes.check(geojson, names, overwrite=overwrite)
    if dry_run:
        return sink.plan(library.plan(path, out, finder, overwrite=overwrite))
    for folder in filter(None, (preview, geojson)):
        disk.make_folder(folder)
    with progress.track("mask", quiet=quiet) as report, cluster.spread(dask) as spread:
        done = library.mask(path, out, finder, workers, max_failed, overwrite, report, spread)
    for sentence in done.notes:
        output.note(f"pathfm: {sentence}")
    output.failures(done.failures, done.record["rows"], "slides")
    if preview:
        with progress.track("preview", quiet=quiet) as report:
            lost = pictures.outlines(
                *(out, preview), workers=workers, overwrite=overwrite, progress=report
            )
            contact.sheet(out, preview, workers=workers, overwrite=overwrite)
        output.failures(lost, done.record["rows"], "previews")
    if geojson:
        shapes.export(out, geojson, overwrite=overwrite)
    sink.emit(done.record, done.summary, f"pathfm sample {out} --n 1000 -o patches.parquet")
    # Sink.emit answers 4 for errors carried over from index as well; only new ones count here.
    return errors.PARTIAL if done.failures else 0
