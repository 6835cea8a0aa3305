"""Images with label maps: the table that lists them, their pixels, crops, windows and pictures.

A label map is an image file of one channel that holds the class of every pixel, 0 for background,
or the number of the object it belongs to (an instance map). Arrays are (H, W), rows first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image as pillow

from pathfm_cli import disk, errors
from pathfm_cli.data import draw, metadata
from pathfm_cli.tasks import images

CROP = 103
"""Purpose of the random numbers of a crop: which image, and where."""
IGNORE = 255
"""Class of pixels outside an image; they train nothing and are not scored."""
MAX_CLASSES = 64
COLUMNS = ("image", "label", "split")
COLOURS = np.array(
    [(0, 0, 0), (240, 228, 66), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167)],
    dtype=np.float32,
)
"""Okabe and Ito's palette, readable without red-green vision; classes beyond it take turns."""

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One row of the table."""

    id: str
    image: Path
    label: Path
    split: str

    @property
    def file_name(self) -> str:
        """The id as a plain PNG name."""
        return re.sub(r"[^\w.-]", "_", self.id).lstrip(".") + ".png"


@dataclasses.dataclass(frozen=True, slots=True)
class Labelled:
    """An image (H, W, 3) and the class of each of its pixels (H, W)."""

    image: Pixels
    label: Pixels


def read_table(path: str | Path) -> list[Item]:
    """Read a CSV, TSV or Parquet with the columns image, label, split and, if it likes, id.

    Files are relative to the table. Without `id` an image is called by its file.

    Raises:
        errors.InputError: the table is missing, unreadable or empty.
        errors.UsageError: a column or a value is missing, or two images have one name.
    """
    path = Path(path)
    table = metadata.read(path)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise errors.UsageError(
            f"{path} has no column {missing[0]}.", f"its columns: {', '.join(table.columns)}"
        )
    named = "id" if "id" in table.columns else "image"
    rows = table.select(pl.col(name).cast(pl.String) for name in dict.fromkeys((named, *COLUMNS)))
    if rows.is_empty():
        raise errors.InputError(f"{path} lists no images.", "a row an image is expected")
    if rows.null_count().sum_horizontal()[0]:
        raise errors.UsageError(
            f"{path} has empty cells in {', '.join(rows.columns)}.", "fill them"
        )
    items = [
        Item(row[named], path.parent / row["image"], path.parent / row["label"], row["split"])
        for row in rows.iter_rows(named=True)
    ]
    if len({item.file_name.lower() for item in items}) < len(items):
        raise errors.UsageError(
            f"{path} has two images of one name.", "add a column `id` with a name for each row"
        )
    return items


def digest(items: Sequence[Item]) -> str:
    """12 hex digits that follow names, splits, sizes and times of change of all files."""
    found = hashlib.sha256()
    for item in items:
        versions = [_version(item.image), _version(item.label)]
        found.update(f"{item.id!r} {item.split!r} {versions}\n".encode())
    return found.hexdigest()[:12]


def read(item: Item, *, instances: bool) -> Labelled:
    """Read an image and its label map.

    Args:
        item: what to read.
        instances: every object is class 1.

    Raises:
        errors.SlideError: a file is missing or damaged, or the two differ in size.
        errors.UsageError: the labels look like an instance map and `instances` is false.
    """
    image = images.decode(item.image)
    label = _label(item.label)
    if label.shape != image.shape[:2]:
        sizes = " and ".join(f"{a.shape[1]} x {a.shape[0]}" for a in (image, label))
        raise errors.SlideError(f"image and label map differ in size: {sizes} px")
    if instances:
        label = (label > 0).astype(np.uint8)
    elif label.max(initial=0) >= MAX_CLASSES or label.min(initial=0) < 0:
        raise errors.UsageError(
            f"{item.label} holds the label {label.max()}; classes are 0 to {MAX_CLASSES - 1}.",
            "--instances if these are numbers of objects",
        )
    return Labelled(image, label.astype(np.uint8))


def largest(item: Item) -> int:
    """Largest number in a label map; 0 if it cannot be read, which `read` will say."""
    try:
        return int(_label(item.label).max(initial=0))
    except errors.SlideError:
        return 0


def random_crops(
    items: Sequence[Item], count: int, size_px: int, seed: int, *, instances: bool
) -> Iterator[Labelled | tuple[Item, str]]:
    """Yield `count` random crops, image by image; for an image that fails, it and the reason.

    The crops of an image that fails are missing. Images and places are drawn uniformly.

    Args:
        items: the images.
        count: crops over all images.
        size_px: side of a crop.
        seed: crop i is a function of (seed, i).
        instances: as in `read`.
    """
    places: dict[int, list[tuple[float, float]]] = {}
    for index in range(count):
        chosen, down, right = crop_of(index, len(items), seed)
        places.setdefault(chosen, []).append((down, right))
    for number, item in enumerate(items):
        try:
            whole = read(item, instances=instances)
        except errors.SlideError as error:
            yield item, str(error)
            continue
        for down, right in places.get(number, ()):
            yield cut(whole, down, right, size_px)


def crop_of(index: int, count: int, seed: int) -> tuple[int, float, float]:
    """Crop `index` of a run: which of `count` images, and where as a share of the free play."""
    rng = draw.rng(seed, index, CROP)
    return int(rng.integers(count)), float(rng.random()), float(rng.random())


def cut(item: Labelled, down: float, right: float, size_px: int) -> Labelled:
    """Cut a square at a share (0 to 1) of the free play; beyond the image white, class IGNORE."""
    item = pad(item, size_px)
    height, width = item.label.shape
    top = round(down * (height - size_px))
    left = round(right * (width - size_px))
    place = np.s_[top : top + size_px, left : left + size_px]
    return Labelled(item.image[place], item.label[place])


def pad(item: Labelled, size_px: int) -> Labelled:
    """Extend an image to at least `size_px` on each side, to the right and downwards."""
    height, width = item.label.shape
    extra = ((0, max(0, size_px - height)), (0, max(0, size_px - width)))
    return Labelled(
        np.pad(item.image, (*extra, (0, 0)), constant_values=255),
        np.pad(item.label, extra, constant_values=IGNORE),
    )


def starts(length_px: int, size_px: int, stride_px: int) -> list[int]:
    """Left edges of windows that cover `length_px`: every stride, the last one moved inside.

    >>> starts(1000, 224, 194)
    [0, 194, 388, 582, 776]
    """
    last = max(0, length_px - size_px)
    return [*range(0, last, stride_px), last]


def write_map(path: Path, predicted: Pixels) -> None:
    """Write a label map as an 8-bit PNG whose grey values are the classes."""
    with disk.atomic(path) as temporary:
        pillow.fromarray(predicted).save(temporary, format="png")


def write_overlay(path: Path, item: Labelled, predicted: Pixels) -> None:
    """Write image, labels and prediction side by side (as Figure 3 of the paper)."""
    gap = np.full((item.image.shape[0], 4, 3), 255, dtype=np.uint8)
    panels = (item.image, gap, _tinted(item.image, item.label), gap, _tinted(item.image, predicted))
    with disk.atomic(path) as temporary:
        pillow.fromarray(np.concatenate(panels, axis=1)).save(temporary, format="png")


def _tinted(image: Pixels, label: Pixels) -> Pixels:
    """Lay the colours of the classes over an image; background stays."""
    picked = np.where(label == 0, 0, (label - 1) % (len(COLOURS) - 1) + 1)
    mixed = 0.5 * image + 0.5 * COLOURS[picked]
    return np.where((label == 0)[..., None], image, mixed.astype(np.uint8))


def _label(path: Path) -> npt.NDArray[np.int64]:
    if path.suffix == ".mat":
        from pathfm_cli.tasks import typemap

        return typemap.read(path).astype(np.int64)
    try:
        with pillow.open(path, formats=("PNG", "TIFF", "BMP")) as image:
            if image.width * image.height > images.MAX_IMAGE_PX:
                raise errors.SlideError(f"the label map is {image.width} x {image.height} px")
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise errors.SlideError(f"the label map has the mode {image.mode}, not one channel")
            return np.array(image).astype(np.int64)
    except errors.SlideError:
        raise
    except FileNotFoundError as error:
        raise errors.SlideError(f"the label map {path} does not exist") from error
    except Exception as error:  # the decoders meet hostile bytes and raise whatever they provoke
        raise errors.SlideError(f"the label map cannot be decoded: {path}") from error


def _version(path: Path) -> tuple[Any, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
