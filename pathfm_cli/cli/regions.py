"""`pathfm segment --apply`: a trained decoder on slides, as polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathfm_cli import disk, errors
from pathfm_cli.cli import encoder, output, pipe, progress


def apply(
    trained: Path,
    inputs: Sequence[str],
    model: str | None,
    mpp: str | None,
    geojson: Path | None,
    out: Path,
    how: Mapping[str, Any],
    sink: output.Sink,
    *,
    overwrite: bool,
    quiet: bool,
    dry_run: bool,
) -> int:
    """Find regions on slides; arguments as the options of `segment`.

    Args:
        trained: result folder of `segment`.
        inputs: patches or tissue, and maybe a checkpoint.
        model: value of `--model`.
        mpp: um/px of a grid over tissue.
        geojson: folder for files that QuPath opens.
        out: the Parquet file to write.
        how: more for `weights.load`.
        sink: where the record goes.
        overwrite: replace other results.
        quiet: show no progress.
        dry_run: only say what would be done.
    """
    from pathfm_cli import artifacts
    from pathfm_cli.tasks import request, source

    request.check(out, overwrite=overwrite, kind="regions")
    settings = artifacts.read_header(trained / "scores.parquet", "scores").settings
    if settings.get("task") != "segment":
        raise errors.InputError(f"{trained} holds no decoder.", "what pathfm segment wrote")
    size_px = int(settings["size_px"])
    grid = request.whole_grid(mpp, size_px, int(settings["stride_px"])) if mpp else None
    slots = {"images": pipe.Slot(("patches", "tissue"))}
    bound, spec = encoder.bind("segment", inputs, slots, model, out)
    path = bound["images"]
    if not grid and artifacts.read_header(path, "patches", "tissue").kind == "tissue":
        raise errors.UsageError(
            f"{path} is tissue; a grid over it needs --mpp.", "the um/px of the training images"
        )
    data = request.open_places(path, source.SAME, grid)
    for sentence in data.notes:
        output.note(f"pathfm: {sentence}")
    if dry_run:
        return sink.plan(request.plan(data, spec, out))
    network = encoder.load(spec, image_size_px=size_px, **how)
    from pathfm_cli.tasks import regions

    decoder = regions.load(trained, network)
    if geojson:
        disk.make_folder(geojson)
        regions.check_export(data, geojson, overwrite=overwrite)
    with progress.track("segment", quiet=quiet) as report:
        record, failed = regions.find(
            data, network, decoder, out, overwrite=overwrite, progress=report
        )
    if geojson:
        regions.export(out, geojson, overwrite=overwrite)
    output.failures(failed, data.rows.height, "patches")
    return sink.emit(record, regions.summary(record, out))
