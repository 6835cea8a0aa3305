"""Images with label maps: what lists them, their pixels, random crops and windows.

They come from a table or a folder; `labelmaps` says what a label map may be. Arrays are (H, W),
rows first.
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

from pathfm_cli import errors
from pathfm_cli.data import draw, metadata
from pathfm_cli.tasks import images, labelmaps

CROP = 103
"""Purpose of the random numbers of a crop: which image, and where."""
IGNORE = 255
"""Class of pixels outside an image; they train nothing and are not scored."""
COLUMNS = ("image", "label", "split")
SPLITS = ("train", "test")
MAX_NAME_BYTES = 200
"""Length of a label map's file name; what writes it adds more, and 255 is the limit of most."""
CLASS_LIST = "classes.txt"
"""In a folder of images: the names of the classes, one a line, background first."""

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

    Files are relative to the table and below it, or absolute. Without `id` an image is called by
    its file.

    Raises:
        errors.InputError: the table is missing, unreadable or empty.
        errors.UsageError: a column or a value is missing, two images have one name, or a path leads
            out of the table's folder.
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
    if empty := [column.name for column in rows if column.null_count()]:
        raise errors.UsageError(f"{path} has empty cells in {', '.join(empty)}.", "fill them")
    items = [
        Item(
            row[named],
            metadata.place(path, row["image"]),
            metadata.place(path, row["label"]),
            row["split"],
        )
        for row in rows.iter_rows(named=True)
    ]
    _check_names(items, path)
    return items


def read_folder(folder: Path) -> tuple[list[Item], tuple[str, ...], tuple[str, ...]]:
    """List `SPLIT/images/NAME.*` with `SPLIT/labels/NAME.*`, SPLIT being train or test.

    Returns:
        The images, the names of the classes if `CLASS_LIST` gives them, and the paths of files
        and folders in it that are left out.

    Raises:
        errors.InputError: a folder or a label map is missing, or there are two for an image.
    """
    items, left = [], [p for p in sorted(folder.iterdir()) if p.name not in (*SPLITS, CLASS_LIST)]
    for split in SPLITS:
        for part in ("images", "labels"):
            if not (folder / split / part).is_dir():
                raise errors.InputError(
                    f"{folder} has no folder {split}/{part}.",
                    "SPLIT/images/NAME.png with SPLIT/labels/NAME.png, SPLIT: train and test",
                )
        maps: dict[str, list[Path]] = {}
        for file in sorted((folder / split / "labels").iterdir()):
            if file.is_dir() or file.suffix.lower() in labelmaps.SUFFIXES:
                maps.setdefault(file.name if file.is_dir() else file.stem, []).append(file)
            else:
                left.append(file)
        for image in sorted((folder / split / "images").iterdir()):
            if image.suffix.lower() not in images.SUFFIXES:
                left.append(image)
                continue
            found = maps.get(image.stem, [])
            if len(found) != 1:
                raise errors.InputError(
                    f"{image} has {len(found) or 'no'} label maps in {folder / split / 'labels'}.",
                    f"one of {image.stem}{{{','.join(labelmaps.SUFFIXES)}}}",
                )
            items.append(Item(f"{split}/{image.name}", image, found[0], split))
        used = {item.label for item in items}
        left += [file for files in maps.values() for file in files if file not in used]
    if not items:
        raise errors.InputError(f"{folder} holds no images.", "SPLIT/images/NAME.png")
    _check_names(items, folder)
    names = folder / CLASS_LIST
    listed = read_classes(names) if names.is_file() else ()
    visible = [path for path in left if not path.name.startswith(".")]
    return items, listed, tuple(path.relative_to(folder).as_posix() for path in visible)


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line, background first.

    Raises:
        errors.InputError: the file cannot be read.
        errors.UsageError: as `check_classes`.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InputError(f"{path} cannot be read.", "one name of a class a line") from error
    return check_classes([line.strip() for line in text.splitlines() if line.strip()])


def check_classes(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes.

    Raises:
        errors.UsageError: there are fewer than two, too many, or two are equal or empty.
    """
    if not 2 <= len(names) <= labelmaps.MAX_CLASSES or len(set(names)) < len(names):
        raise errors.UsageError(
            f"{','.join(names) or 'nothing'} is no list of 2 to {labelmaps.MAX_CLASSES} classes.",
            "--classes background,tumour,stroma",
        )
    if not all(names):
        raise errors.UsageError("A class has no name.", "--classes background,tumour,stroma")
    return tuple(names)


def digest(items: Sequence[Item]) -> str:
    """12 hex digits that follow names, splits, sizes and times of change of all files."""
    found = hashlib.sha256()
    for item in items:
        versions = [_version(item.image), _version(item.label)]
        found.update(f"{item.id!r} {item.split!r} {versions}\n".encode())
    return found.hexdigest()[:12]


def read(item: Item, meaning: str) -> Labelled:
    """Read an image and its label map.

    Args:
        item: what to read.
        meaning: name in `labelmaps.MEANINGS`.

    Raises:
        errors.SlideError: a file is missing or damaged, or the two differ in size.
        errors.UsageError: the labels look like numbers of objects and are said to be classes.
    """
    image = images.decode(item.image)
    height, width = image.shape[:2]
    return Labelled(image, labelmaps.read(item.label, meaning, (height, width)))


def largest(item: Item) -> int:
    """Largest class in a label map of classes.

    Raises:
        errors.SlideError, errors.UsageError: as `read`.
    """
    numbers = labelmaps.raw(item.label, "classes", (0, 0))
    labelmaps.check_classes(item.label, numbers)
    return int(numbers.max(initial=0))


def random_crops(
    items: Sequence[Item], count: int, size_px: int, seed: int, meaning: str
) -> Iterator[Labelled | tuple[Item, str]]:
    """Yield `count` random crops, image by image; for an image that fails, it and the reason.

    The crops of an image that fails are missing. Images and places are drawn uniformly.

    Args:
        items: the images.
        count: crops over all images.
        size_px: side of a crop.
        seed: crop i is a function of (seed, i).
        meaning: as in `read`.
    """
    places: dict[int, list[tuple[float, float]]] = {}
    for index in range(count):
        chosen, down, right = crop_of(index, len(items), seed)
        places.setdefault(chosen, []).append((down, right))
    for number, item in enumerate(items):
        try:
            whole = read(item, meaning)
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


def _check_names(items: Sequence[Item], where: Path) -> None:
    if len({item.file_name.lower() for item in items}) < len(items):
        raise errors.UsageError(
            f"{where} has two images of one name.", "add a column `id` with a name for each row"
        )
    for item in items:
        if len(item.file_name.encode()) > MAX_NAME_BYTES:
            raise errors.UsageError(
                f"{where} has a name that is too long for a file: {item.id[:40]}...",
                f"a column `id` with names of at most {MAX_NAME_BYTES - len('.png')} bytes",
            )


def _version(path: Path) -> tuple[Any, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    if path.is_dir():
        return tuple((file.name, _version(file)) for file in sorted(path.iterdir()))
    return status.st_size, status.st_mtime_ns
