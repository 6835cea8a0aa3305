"""Pairs to learn from: a thumbnail and which of its pixels are tissue.

A pair comes from a slide, or from a picture of one, and an annotation of the same name: GeoJSON in
the pixels of the slide's level 0 (or of the picture), or a PNG of any size that covers the whole
and is not black on tissue.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import shapely
from numpy import typing as npt
from PIL import Image
from shapely import geometry

from pathfm_cli import errors
from pathfm_cli.data import cohort, finders, geojson, outlines

SUFFIXES = (".geojson", ".json", ".png")
"""What an annotation may end with, in the order in which it is looked for."""
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PIXELS = 64_000_000
"""Largest thumbnail, picture or mask that is opened."""
POINTS = 1 << 20
"""Points that are looked up together."""
MAX_GREY = 0.05
"""Share of a mask's pixels that may lie between its two levels, as along smooth edges."""
GLASS_MIN = 200
"""Darker pixels outside the tissue are not taken for glass."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """One thumbnail and its truth.

    Attributes:
        name: of the slide or picture.
        rgb: (H, W, 3) uint8.
        mask: (H, W) bool, true on tissue.
        glass: (3,) float32, the colour of its bare glass.
    """

    name: str
    rgb: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    glass: npt.NDArray[np.float32]


def check(
    folder: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    image_mpp: float | None,
    slides: Sequence[str] | None,
) -> None:
    """Refuse sources that do not go together, or are not there.

    Raises:
        errors.UsageError: it says which.
    """
    if not Path(folder).is_dir():
        raise errors.UsageError(f"There is no folder {folder}.", "--annotations DIR")
    if (images is None) != (image_mpp is None):
        raise errors.UsageError(
            "--images and --image-mpp go together.", "--images thumbs/ --image-mpp 8"
        )
    if images is not None and slides:
        raise errors.UsageError("Slides or --images, not both.", "name just one")
    if images is not None and not Path(images).is_dir():
        raise errors.UsageError(f"There is no folder {images}.", "--images DIR")
    if image_mpp is not None and not 0.25 <= image_mpp <= 64:
        raise errors.UsageError(f"--image-mpp {image_mpp:g} is no thumbnail.", "--image-mpp 8")


def make(name: str, rgb: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> Pair:
    """Pair a thumbnail and its truth; the glass is the median of the bright pixels outside."""
    bare = rgb[~mask & (rgb.min(axis=2) >= GLASS_MIN)]
    glass = np.median(bare, axis=0) if len(bare) else np.full(3, 245.0)
    return Pair(name, rgb, mask, np.asarray(glass, np.float32))


def of_slides(
    slides: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    mpp: float,
    only: Sequence[str] = (),
) -> Iterator[Pair]:
    """Pairs of the slides of an artifact that have an annotation.

    Args:
        slides: a `slides` or `tissue` artifact.
        folder: holds SLIDE.geojson or SLIDE.png.
        mpp: resolution of the thumbnails, um/px.
        only: ids of slides to take; empty means all.

    Raises:
        errors.SlideError: a slide or an annotation cannot be read.
    """
    opened = cohort.open_cohort(slides)
    for slide in opened.slides:
        file = annotation(folder, slide.slide)
        if file is not None and (not only or slide.slide in only):
            rgb = finders.thumbnail(slide, opened.reader, mpp, "use a coarser --mpp")
            mask = truth(file, (slide.width_px0, slide.height_px0), (rgb.shape[1], rgb.shape[0]))
            yield make(slide.slide, rgb, mask)


def of_images(
    images: str | os.PathLike[str], folder: str | os.PathLike[str], image_mpp: float, mpp: float
) -> Iterator[Pair]:
    """Pairs of the pictures of a folder that have an annotation.

    Args:
        images: folder of pictures (PNG, JPEG, TIFF).
        folder: holds NAME.geojson or NAME.png; may be another folder only.
        image_mpp: resolution of the pictures, um/px.
        mpp: resolution of the thumbnails made from them, um/px.

    Raises:
        errors.SlideError: a picture or an annotation cannot be read.
    """
    for path in pictures(images):
        file = annotation(folder, path.stem)
        if file is not None and not file.samefile(path):
            picture = _open(path).convert("RGB")
            size = tuple(max(1, round(side * image_mpp / mpp)) for side in picture.size)
            if size[0] * size[1] > MAX_PIXELS:
                raise errors.SlideError(
                    f"{path} at {mpp:g} um/px has more than {MAX_PIXELS // 10**6} million pixels"
                )
            rgb = np.asarray(picture.resize((size[0], size[1]), Image.Resampling.HAMMING))
            yield make(path.stem, rgb, truth(file, picture.size, (size[0], size[1])))


def pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures of a folder, by name."""
    return sorted(
        path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGES and path.is_file()
    )


def annotation(folder: str | os.PathLike[str], name: str) -> Path | None:
    """The annotation of a slide in a folder, or None."""
    files = (geojson.file_for(folder, name, suffix) for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def truth(file: Path, whole_px: tuple[int, int], size_px: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Rasterise an annotation.

    Args:
        file: GeoJSON or PNG.
        whole_px: (width, height) in which GeoJSON counts.
        size_px: (width, height) of the result.

    Raises:
        errors.SlideError: it cannot be read, or the PNG is no mask of the whole.
    """
    if file.suffix == ".png":
        grey = _open(file).convert("L")
        _check_mask(file, grey, whole_px)
        mask = grey.point(lambda value: 255 if value else 0)
        return np.asarray(mask.resize(size_px, Image.Resampling.BOX)) > 127
    tissue = outlines.within(outlines.read(file), *whole_px, file)
    return raster(tissue, (size_px[0] / whole_px[0], size_px[1] / whole_px[1]), size_px)


def raster(
    tissue: geometry.MultiPolygon, scale: tuple[float, float], size_px: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Pixels whose centre lies in a multipolygon.

    Args:
        tissue: the multipolygon.
        scale: pixels per unit of it, along x and y.
        size_px: (width, height) of the result.
    """
    shapely.prepare(tissue)
    x, y = ((np.arange(side) + 0.5) / step for side, step in zip(size_px, scale, strict=True))
    rows = max(1, POINTS // size_px[0])
    parts = [
        shapely.contains_xy(tissue, *np.meshgrid(x, y[top : top + rows]))
        for top in range(0, size_px[1], rows)
    ]
    return np.concatenate(parts)


def digest(found: Sequence[Pair]) -> str:
    """12 hex digits that name the pixels and truths of pairs."""
    total = hashlib.sha256()
    for pair in found:
        total.update(pair.name.encode() + pair.rgb.tobytes() + np.packbits(pair.mask).tobytes())
    return total.hexdigest()[:12]


def _check_mask(file: Path, grey: Image.Image, whole_px: tuple[int, int]) -> None:
    """See that a picture covers the whole, and is black on glass and one other level on tissue."""
    low, high = np.subtract(grey.size, 1) / whole_px, np.add(grey.size, 1) / whole_px
    if low.max() > high.min():
        raise errors.SlideError(
            f"{file} is {grey.width} x {grey.height} pixels, which is another shape than"
            f" {whole_px[0]} x {whole_px[1]}"
        )
    levels = np.asarray(grey.histogram())
    present = np.flatnonzero(levels)
    if present[0] > 0:
        raise errors.SlideError(f"{file} is no mask: nowhere is it black, as glass is")
    margin = present[-1] / 8
    between = (np.arange(256) > margin) & (np.arange(256) < present[-1] - margin)
    share = levels[between].sum() / levels.sum()
    if share > MAX_GREY:
        raise errors.SlideError(f"{file} is no mask: {share:.0%} of it is neither black nor white")


def _open(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        if picture.width * picture.height > MAX_PIXELS:
            raise errors.SlideError(f"{path} has more than {MAX_PIXELS // 10**6} million pixels")
        picture.load()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise errors.SlideError(f"{path} is no readable picture") from error
    return picture
