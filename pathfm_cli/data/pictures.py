"""Pictures to look at: tissue outlines over thumbnails, contact sheets of patches (PNG, Pillow)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
import polars as pl
import shapely
from numpy import typing as npt
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from shapely import geometry

from pathfm_cli import disk, errors
from pathfm_cli.data import cohort, geojson
from pathfm_cli.wsi import pyramid

PREVIEW_PX = 1600
"""Longer side of an outline preview."""
CELL_PX = 192
"""Side of a patch on a contact sheet."""
MAX_CELLS = 48
"""Patches on a contact sheet; of more, so many are taken at equal steps."""

_MARK = ("Software", "pathfm")
"""Text chunk by which a picture of pathfm is known."""
_OUTER = (0, 150, 40)
_INNER = (230, 120, 0)
_INK = (40, 40, 40)
_PAPER = (255, 255, 255)
_STRIP_PX = 34
_GAP_PX = 8
_BARS_UM = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)


def outlines(
    tissue: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    workers: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[str, str]]:
    """Write `SLIDE.png` for every slide of a `tissue` artifact that has no error.

    Args:
        tissue: the artifact.
        folder: where the pictures go.
        workers: threads; 0 means one per core.
        overwrite: replace files that are no pictures of pathfm, too.
        progress: told (done, total).

    Returns:
        (slide, error) of the slides that could not be read.

    Raises:
        errors.OutputClash: as `check_free`; then nothing was written.
    """
    opened = cohort.open_cohort(tissue)
    good = opened.table.frame.filter(pl.col("error").is_null())
    for name in good["slide"]:
        check_free(geojson.file_for(folder, name, ".png"), overwrite=overwrite)
    shapes = dict(good.select("slide", "geometry").iter_rows())

    def draw(slide: pyramid.Slide) -> tuple[str, str] | None:
        side_um = max(slide.width_px0, slide.height_px0) * slide.mpp
        try:
            thumbnail = opened.reader.read_thumbnail(slide, side_um / PREVIEW_PX)
        except errors.SlideError as error:
            return slide.slide, str(error)
        picture = outline(slide, thumbnail, shapely.from_wkb(shapes[slide.slide]))
        _save(picture, geojson.file_for(folder, slide.slide, ".png"))
        return None

    failed = []
    with futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for number, failure in enumerate(pool.map(draw, opened.slides), 1):
            if failure:
                failed.append(failure)
            progress(number, len(opened.slides))
    return failed


def outline(
    slide: pyramid.Slide, thumbnail: npt.NDArray[np.uint8], tissue: geometry.MultiPolygon
) -> Image.Image:
    """Draw tissue over a thumbnail: outer edges green, holes orange, with a caption and a scale.

    Args:
        slide: for name and mpp.
        thumbnail: (H, W, 3) uint8, the whole slide.
        tissue: level-0 pixels.
    """
    height, width = thumbnail.shape[:2]
    picture = Image.new("RGB", (width, height + _STRIP_PX), _PAPER)
    picture.paste(traced(slide, thumbnail, tissue, 3), (0, 0))
    pen = ImageDraw.Draw(picture)
    area_mm2 = tissue.area * slide.mpp**2 / 1e6
    um_per_px = slide.width_px0 * slide.mpp / width
    _caption(pen, (0, height, width), f"{slide.slide}   {area_mm2:.3g} mm2 of tissue", um_per_px)
    return picture


def traced(
    slide: pyramid.Slide,
    thumbnail: npt.NDArray[np.uint8],
    tissue: geometry.MultiPolygon,
    width_px: int,
) -> Image.Image:
    """A thumbnail with lines of `width_px` along its tissue; arguments as `outline`."""
    height, width = thumbnail.shape[:2]
    scale = np.array([width / slide.width_px0, height / slide.height_px0])
    picture = Image.fromarray(thumbnail)
    pen = ImageDraw.Draw(picture)
    for part in shapely.get_parts(tissue):
        for number, ring in enumerate([part.exterior, *part.interiors]):
            line = [tuple(point) for point in (shapely.get_coordinates(ring) * scale).tolist()]
            pen.line(line, _INNER if number else _OUTER, width=width_px, joint="curve")
    return picture


def contact_sheet(
    patches: str | os.PathLike[str], picture: str | os.PathLike[str]
) -> list[tuple[str, str]]:
    """Draw patches of a `patches` artifact with slide, mpp and tissue share.

    Args:
        patches: the artifact; of more than `MAX_CELLS` rows, evenly spaced ones are taken.
        picture: the PNG to write.

    Returns:
        (slide, error) of the patches that could not be read; they are left white.
    """
    opened = cohort.open_cohort(patches)
    frame = opened.table.frame
    chosen = np.unique(np.linspace(0, frame.height - 1, min(MAX_CELLS, frame.height)).astype(int))
    slides = {slide.slide: slide for slide in opened.slides}
    cells, failed = [], []
    for row in frame[chosen.tolist()].iter_rows(named=True):
        place = row["x_px0"], row["y_px0"], row["mpp"], row["size_px"]
        pixels = np.full((CELL_PX, CELL_PX, 3), 255, dtype=np.uint8)
        try:
            pixels = opened.reader.read_patch(slides[row["slide"]], *place)
        except errors.SlideError as error:
            failed.append((row["slide"], str(error)))
        caption = f"{row['mpp']:g} um/px   {row['tissue_fraction']:.0%} tissue"
        cells.append((pixels, row["slide"], caption))
    _save(sheet(cells), Path(picture))
    return failed


def sheet(cells: Sequence[tuple[npt.NDArray[np.uint8], str, str]]) -> Image.Image:
    """Lay out images with two captions each, on a sheet about as wide as it is high."""
    columns = max(1, round((len(cells) * (CELL_PX + _STRIP_PX) / CELL_PX) ** 0.5))
    rows = -(-len(cells) // columns) or 1
    step_x, step_y = CELL_PX + _GAP_PX, CELL_PX + _STRIP_PX + _GAP_PX
    picture = Image.new("RGB", (columns * step_x + _GAP_PX, rows * step_y + _GAP_PX), _PAPER)
    pen = ImageDraw.Draw(picture)
    for number, (pixels, title, caption) in enumerate(cells):
        x = _GAP_PX + number % columns * step_x
        y = _GAP_PX + number // columns * step_y
        image = Image.fromarray(pixels).resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
        picture.paste(image, (x, y))
        for line, text in enumerate((title, caption)):
            pen.text((x, y + CELL_PX + 2 + 15 * line), _fit(pen, text, CELL_PX), _INK, _font(12))
    return picture


def _caption(
    pen: ImageDraw.ImageDraw, strip: tuple[int, int, int], text: str, um_per_px: float
) -> None:
    """Text on the left, a scale bar of about a tenth of the width on the right."""
    left, top, width = strip
    bar_um = min(_BARS_UM, key=lambda um: abs(um / um_per_px - width / 10))
    bar_px = bar_um / um_per_px
    label = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um} um"
    end, middle = left + width - _GAP_PX, top + _STRIP_PX / 2
    pen.line([(end - bar_px, middle), (end, middle)], _INK, width=4)
    start = end - bar_px - _GAP_PX - pen.textlength(label, _font(16))
    pen.text((start, top + 7), label, _INK, _font(16))
    room = start - left - 2 * _GAP_PX
    pen.text((left + _GAP_PX, top + 7), _fit(pen, text, room, 16), _INK, _font(16))


def _fit(pen: ImageDraw.ImageDraw, text: str, width_px: float, size_px: int = 12) -> str:
    """Cut a text so that it fits."""
    while text and pen.textlength(text, _font(size_px)) > width_px:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """See that a picture may be written: nothing is there, or an earlier picture of pathfm.

    Raises:
        errors.OutputClash: it is another file.
        errors.Unwritable: nothing can be written there.
    """
    disk.check_place(path)
    if overwrite or not os.path.lexists(path):
        return
    try:
        if not path.is_file():
            raise OSError("a pipe would be waited for")
        with Image.open(path, formats=("PNG",)) as picture:
            ours = picture.info.get(_MARK[0]) == _MARK[1]
    except OSError:
        ours = False
    if not ours:
        raise errors.OutputClash(
            f"{path} exists and is no picture of pathfm.", "another name, or --overwrite"
        )


def _save(picture: Image.Image, path: Path) -> None:
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*_MARK)
    with disk.atomic(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=mark)
