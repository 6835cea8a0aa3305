"""A trained decoder applied to slides: polygons of its classes in level-0 pixels.

Patches on a grid with a stride below their size overlap; of each only the middle, a square of the
stride, is believed, at the edge of the slide up to it, so that the middles tile the tissue.
Polygons that touch across patches are joined.
Legend: B = batch, S = side of a patch in pixels, C = classes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import shapely
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, geojson, grid, polygons
from pathfm_cli.model import weights
from pathfm_cli.tasks import decoder as decoders
from pathfm_cli.tasks import overlays, segmentation, source, tokens

SCHEMA = {
    "slide": pl.String,
    "label": pl.String,
    "geometry": pl.Binary,
    "area_um2": pl.Float64,
    "error": pl.String,
}
GRID_PX0 = 0.01
"""Corners are rounded to this, so that those of neighbours are the same."""
_DAMAGED = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError),
    SafetensorError,
)
Report = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """A decoder and what it was trained to find.

    Attributes:
        module: a `decoder.Decoder`.
        classes: names, background first.
        size_px: side of its crops.
        features: name in `segmentation.FEATURES`.
        scores: `scores:ID` of the segmentation it comes from.
    """

    module: Any
    classes: tuple[str, ...]
    size_px: int
    features: str
    scores: str


def load(folder: Path, encoder: weights.Encoder) -> Trained:
    """The first decoder in a result folder of `pathfm segment` that was kept and converged.

    Raises:
        errors.InputError: the folder is no result of `segment`, is damaged, or no kept run
            converged.
        errors.UsageError: it was trained on another encoder.
    """
    header = artifacts.read_header(folder / "scores.parquet", "scores")
    damaged = f"{folder} holds no decoder that can be used."
    if header.settings.get("task") != "segment":
        raise errors.InputError(damaged, "the folder that pathfm segment wrote")
    if f"encoder:{encoder.id}" not in header.parents:
        trained = header.settings.get("encoder", {}).get("model")
        raise errors.UsageError(
            f"The decoder of {folder} was trained on another encoder ({trained}).",
            "--model as it was then",
        )
    try:
        document = json.loads((folder / "scores.json").read_text())
        classes = tuple(map(str, document["classes"]))
        converged = {int(one["run"]) for one in document["attempts"] if one["converged"]}
        usable = [int(run) for run in document["kept"] if int(run) in converged]
        if not usable:
            raise errors.InputError(
                f"No decoder of {folder} converged.", "segment again: more --epochs, another --lr"
            )
        first = f"run{usable[0]}."
        tensors = safetensors_torch.load_file(folder / segmentation.FILES["decoder"])
        state = {k.removeprefix(first): v for k, v in tensors.items() if k.startswith(first)}
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise ValueError("not finite")
        name, size_px = str(header.settings["decoder"]), int(header.settings["size_px"])
        features = str(header.settings["features"])
        module = decoders.build(name, encoder_width(encoder, size_px), len(classes), seed=0)
        module.load_state_dict(state)
    except _DAMAGED as error:
        raise errors.InputError(damaged, "make it again") from error
    module = module.eval().to(encoder.device)
    return Trained(module, classes, size_px, features, f"scores:{header.id}")


def encoder_width(encoder: weights.Encoder, size_px: int) -> int:
    """Width D of the encoder's patch tokens."""
    blank = torch.zeros((1, size_px, size_px, 3), dtype=torch.uint8)
    return int(tokens.encode(encoder, blank).shape[-1])


def find(
    data: source.Source,
    encoder: weights.Encoder,
    trained: Trained,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Report = lambda done, total: None,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Segment the patches of slides and write the `regions` artifact.

    Args:
        data: patches, of a `patches` or a `tissue` artifact.
        encoder: the one the decoder was trained on.
        trained: the decoder.
        out: the Parquet file to write.
        overwrite: replace a result made with other inputs or settings.
        progress: told (done, total) patches.

    Returns:
        The record, and (id, reason) of patches that could not be read.

    Raises:
        errors.OutputClash: `out` holds something else.
        errors.UsageError: the patches are not as large as the decoder's crops.
    """
    if data.settings["size_px"] != trained.size_px or data.table is None:
        raise errors.UsageError(
            f"The decoder was trained on {trained.size_px} px, the patches are of other sides.",
            f"--size {trained.size_px}",
        )
    header = artifacts.Header(
        kind="regions",
        parents=(data.parent, f"encoder:{encoder.id}", trained.scores),
        settings={
            "grid": data.settings.get("grid"),
            "size_px": trained.size_px,
            "classes": list(trained.classes),
            "encoder": encoder.settings(),
        },
        files=cohort.companions(data.table, out),
    )
    if old := artifacts.finished(out, header, overwrite=overwrite):
        return old, _failures(out)
    slides = cohort.slide_rows(data.table)
    mpp0 = dict(slides.select("slide", "mpp").iter_rows())
    found, failed = _collect(data, encoder, trained, slides, progress)
    rows: list[tuple[Any, ...]] = [
        (slide, name, shapely.to_wkb(part), part.area * mpp0[slide] ** 2, None)
        for slide, of_class in found.items()
        for name, parts in zip(trained.classes, of_class, strict=True)
        for part in shapely.get_parts(polygons.multipolygon(_joined(parts)))
    ]
    rows += [(slide, None, None, None, reason) for slide, reason in failed]
    frame = pl.DataFrame(rows, SCHEMA, orient="row")
    return artifacts.write_table(out, frame, header), _failures(out)


def check_export(data: source.Source, folder: Path, *, overwrite: bool = False) -> None:
    """See, before any slide is read, that `export` may write its files.

    Raises:
        errors.OutputClash: a file was edited, or is another's.
    """
    geojson.check(folder, data.rows["slide"].unique(maintain_order=True), overwrite=overwrite)


def export(regions: Path, folder: Path, *, overwrite: bool = False) -> int:
    """Write `SLIDE.geojson` of detections for QuPath for every slide of a `regions` artifact.

    Returns:
        The number of files.

    Raises:
        errors.OutputClash: a file was edited, or is another's; then nothing was written.
    """
    table = artifacts.read_table(regions, "regions")
    frame = table.frame.filter(pl.col("error").is_null())
    names = frame["slide"].unique(maintain_order=True).to_list()
    colours = {n: overlays.colour_of(i) for i, n in enumerate(table.header.settings["classes"])}
    geojson.check(folder, names, overwrite=overwrite)
    for slide in names:
        rows = frame.filter(pl.col("slide") == slide)
        features = [
            feature
            for label, wkb in rows.select("label", "geometry").iter_rows()
            for feature in geojson.features(
                shapely.from_wkb(wkb), {"name": label, "color": colours[label]}, "detection"
            )["features"]
        ]
        geojson.write(folder, slide, {"type": "FeatureCollection", "features": features})
    return len(names)


def summary(record: dict[str, Any], regions: Path) -> list[str]:
    """Lines for a person: polygons and area by class."""
    frame = artifacts.read_table(regions, "regions").frame.filter(pl.col("error").is_null())
    by_class = frame.group_by("label", maintain_order=True).agg(pl.len(), pl.col("area_um2").sum())
    return [f"{record['rows'] - (record.get('failed') or 0)} polygons: {record['path']}"] + [
        f"  {label:<24}{count:>9} polygons{area / 1e6:>12.4f} mm2"
        for label, count, area in by_class.iter_rows()
    ]


def _collect(
    data: source.Source,
    encoder: weights.Encoder,
    trained: Trained,
    slides: pl.DataFrame,
    progress: Report,
) -> tuple[dict[str, list[list[shapely.Geometry]]], list[tuple[str, str]]]:
    """Polygons by slide and class, not joined yet, and (slide, reason) of lost patches."""
    found: dict[str, list[list[shapely.Geometry]]] = {}
    failed: list[tuple[str, str]] = []
    mpp0 = dict(slides.select("slide", "mpp").iter_rows())
    columns = ("slide", "width_px0", "height_px0")
    sides = {slide: both for slide, *both in slides.select(columns).iter_rows()}
    for row, classes_SS in _maps(data, encoder, trained, progress):
        slide = data.rows["slide"][row]
        if isinstance(classes_SS, str):
            failed.append((slide, f"{data.rows['id'][row]}: {classes_SS}"))
            continue
        kept = found.setdefault(slide, [[] for _ in trained.classes])
        scale = data.rows["mpp"][row] / mpp0[slide]
        corner = np.array([data.rows["x_px0"][row], data.rows["y_px0"][row]])
        columns_px, rows_px = (
            _middle(data, trained.size_px, float(start), side, scale)
            for start, side in zip(corner, sides[slide], strict=True)
        )
        believed = classes_SS[slice(*rows_px), slice(*columns_px)]
        offset = np.array([columns_px[0], rows_px[0]]) * scale
        for number in np.unique(believed[believed > 0]):
            traced = polygons.trace(believed == number)
            kept[number] += list(_placed(traced, corner + offset, scale))
    return found, failed


def _maps(
    data: source.Source, encoder: weights.Encoder, trained: Trained, progress: Report
) -> Iterator[tuple[int, np.ndarray[Any, Any] | str]]:
    """Yield each row with its classes (S, S) uint8, or the reason why there are none."""
    total = data.rows.height
    batches = [range(at, min(at + tokens.BATCH, total)) for at in range(0, total, tokens.BATCH)]

    def read(row: int) -> source.Image | str:
        try:
            return data.read(row)
        except errors.SlideError as error:
            return str(error)

    with futures.ThreadPoolExecutor(thread_name_prefix="pathfm-read") as pool:
        waiting = [pool.submit(read, row) for row in (batches[0] if batches else ())]
        for number, batch in enumerate(batches):
            loaded = [one.result() for one in waiting]
            after = batches[number + 1] if number + 1 < len(batches) else ()
            waiting = [pool.submit(read, row) for row in after]
            yield from zip(batch, _predict(loaded, encoder, trained), strict=True)
            progress(batch.stop, total)


def _predict(
    loaded: Sequence[source.Image | str], encoder: weights.Encoder, trained: Trained
) -> Iterator[np.ndarray[Any, Any] | str]:
    usable = [image for image in loaded if not isinstance(image, str)]
    if usable:
        tokens_BhwD = tokens.encode(encoder, torch.from_numpy(np.stack(usable)), trained.features)
        with torch.inference_mode():
            shares_BCSS = trained.module.shares(tokens_BhwD, trained.size_px)
            maps = iter(shares_BCSS.argmax(1).to(torch.uint8).cpu().numpy())
    for image in loaded:
        yield image if isinstance(image, str) else next(maps)


def _middle(
    data: source.Source, size_px: int, start_px0: float, side_px0: float, scale: float
) -> tuple[int, int]:
    """First pixel of a patch, and the one behind the last, that its neighbours know no better."""
    found = data.settings.get("grid")
    if not found:
        return 0, size_px
    last_px = grid.pixels(side_px0, scale) - size_px
    return grid.middle(round(start_px0 / scale), last_px, size_px, found["stride_px"])


def _placed(
    traced: np.ndarray[Any, Any], corner_px0: np.ndarray[Any, Any], scale: float
) -> np.ndarray[Any, Any]:
    """Polygons in pixels of a patch as polygons in level-0 pixels."""
    placed: np.ndarray[Any, Any] = shapely.transform(traced, lambda xy: xy * scale + corner_px0)
    return placed


def _joined(parts: Sequence[shapely.Geometry]) -> shapely.Geometry:
    return shapely.union_all(list(parts), grid_size=GRID_PX0)


def _failures(out: str | os.PathLike[str]) -> list[tuple[str, str]]:
    frame = artifacts.read_table(out, "regions").frame.filter(pl.col("error").is_not_null())
    return list(frame.select("slide", "error").iter_rows())
