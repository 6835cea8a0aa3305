"""Label maps as they lie in files, and what their numbers mean: classes, or numbers of objects.

A label map is an image of one channel (PNG, TIFF, BMP), a .npy array, CoNSeP's .mat, or, for
objects, the outlines of MoNuSeg (.xml) and the folder of one mask an object of DSB 2018. Arrays are
(H, W), rows first, 0 is background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from PIL import ImageDraw
from scipy import ndimage

from pathfm_cli import disk, errors
from pathfm_cli.tasks import images, typemap

MAX_CLASSES = 64
BOUNDARY_PX = 2
"""Half width of the band around the border of an object that is its boundary."""
MEANINGS: Mapping[str, tuple[str, ...]] = {
    "classes": (),
    "objects": ("background", "foreground"),
    "boundaries": ("background", "inside", "boundary"),
}
"""What the numbers of a map may say, and the classes that follow from numbers of objects."""
SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".npy", ".mat", ".xml")
MAX_XML_BYTES = 64 << 20
MAX_COORDINATE = 1e6

Map = npt.NDArray[np.int64]
Size = tuple[int, int]
"""(height, width) in pixels."""


def read(path: Path, meaning: str, size: Size) -> npt.NDArray[np.uint8]:
    """Read the class of every pixel, (H, W).

    Args:
        path: a file, or a folder of masks.
        meaning: name in `MEANINGS`.
        size: of the image.

    Raises:
        errors.SlideError: it is missing, damaged, or not of that size.
        errors.UsageError: the numbers are no classes though `meaning` says so.
    """
    numbers = raw(path, meaning, size)
    if numbers.shape != size:
        sizes = " and ".join(f"{width} x {height}" for height, width in (size, numbers.shape))
        raise errors.SlideError(f"image and label map differ in size: {sizes} px")
    if meaning == "boundaries":
        return boundaries(numbers)
    if meaning == "objects":
        return (numbers > 0).astype(np.uint8)
    check_classes(path, numbers)
    return numbers.astype(np.uint8)


def check_classes(path: Path, numbers: Map) -> None:
    """See that the numbers of a label map are classes.

    Raises:
        errors.UsageError: one is below 0 or too large.
    """
    least, most = numbers.min(initial=0), numbers.max(initial=0)
    if least < 0 or most >= MAX_CLASSES:
        raise errors.UsageError(
            f"{path} holds the label {least if least < 0 else most}; "
            f"classes are 0 to {MAX_CLASSES - 1}.",
            "--instances if these are numbers of objects",
        )


def raw(path: Path, meaning: str, size: Size) -> Map:
    """The numbers as they stand in the file.

    Raises:
        errors.SlideError: as `read`.
    """
    if not path.exists():
        raise errors.SlideError(f"the label map {path} does not exist")
    if disk.is_special(path):
        raise errors.SlideError(f"the label map {path} is no file")
    drawn: Callable[[Path, Size], Map] | None = _masks if path.is_dir() else None
    if path.suffix.lower() == ".xml":
        drawn = _outlines
    if drawn:
        if meaning == "classes":
            raise errors.UsageError(f"{path} holds objects, no classes.", "--instances")
        return drawn(path, size)
    if path.suffix.lower() == ".mat":
        return typemap.read(path, objects=meaning != "classes").astype(np.int64)
    return _array(path) if path.suffix.lower() == ".npy" else _picture(path)


def boundaries(objects: Map) -> npt.NDArray[np.uint8]:
    """Inside (1) and boundary (2) of numbered objects, background 0.

    A pixel of an object is boundary if any other number lies within `BOUNDARY_PX` rows and columns;
    the edge of the image is none. The boundary lies inside the objects, so foreground stays what
    it is.
    """
    side = 2 * BOUNDARY_PX + 1
    least, most = (
        of(objects, size=side, mode="nearest")
        for of in (ndimage.minimum_filter, ndimage.maximum_filter)
    )
    found = np.where(least == most, 1, 2).astype(np.uint8)
    found[objects <= 0] = 0
    return found


def _picture(path: Path) -> Map:
    try:
        with pillow.open(path, formats=("PNG", "TIFF", "BMP")) as image:
            _check_size((image.height, image.width))
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise errors.SlideError(f"the label map has the mode {image.mode}, not one channel")
            return np.array(image).astype(np.int64)
    except errors.SlideError:
        raise
    except Exception as error:  # the decoders meet hostile bytes and raise whatever they provoke
        raise _damaged(path) from error


def _array(path: Path) -> Map:
    try:
        # Mapped, so that a header that lies about its size allocates nothing.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # as above
        raise _damaged(path) from error
    if found.ndim != 2 or found.dtype.kind not in "biu":
        raise errors.SlideError(
            f"the label map {path} is {found.dtype} {found.shape}, not integers (H, W)"
        )
    _check_size(found.shape)
    numbers: Map = found.astype(np.int64)
    return numbers


def _masks(folder: Path, size: Size) -> Map:
    """DSB 2018: one picture an object, anything but 0 is the object; by name, later ones on top."""
    numbers = np.zeros(size, dtype=np.int64)
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() == ".png" and file.is_file()
    )
    if not files:
        raise errors.SlideError(f"the folder {folder} holds no .png masks")
    for number, file in enumerate(files, start=1):
        mask = _picture(file)
        if mask.shape != size:
            raise errors.SlideError(f"the mask {file} is not as large as its image")
        numbers[mask > 0] = number
    return numbers


def _outlines(path: Path, size: Size) -> Map:
    """MoNuSeg: `Region`s of `Vertex` X and Y in pixels of the image, later ones on top."""
    picture = pillow.new("I", (size[1], size[0]))
    pen = ImageDraw.Draw(picture)
    reader = _Regions()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    # Entities can blow up a small file; outlines have no use for them.
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = reader.refuse
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise errors.SlideError(f"{path} is larger than {MAX_XML_BYTES >> 20} MiB")
        parser.Parse(path.read_bytes(), True)
        for number, corners in enumerate((r for r in reader.regions if len(r) > 2), start=1):
            pen.polygon(corners, fill=number)
    except (OSError, expat.ExpatError, KeyError, ValueError, OverflowError) as error:
        raise _damaged(path) from error
    return np.array(picture).astype(np.int64)


class _Regions:
    """Corners (x, y) of each region."""

    def __init__(self) -> None:
        self.regions: list[list[tuple[float, float]]] = []

    def refuse(self, *declaration: object) -> None:
        raise ValueError("it declares a document type or an entity")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "Region":
            self.regions.append([])
        elif tag == "Vertex" and self.regions:
            corner = float(attributes["X"]), float(attributes["Y"])
            if not all(abs(value) <= MAX_COORDINATE for value in corner):
                raise ValueError("a corner lies far outside")
            self.regions[-1].append(corner)


def _check_size(shape: tuple[int, ...]) -> None:
    height, width = shape
    if width * height > images.MAX_IMAGE_PX:
        raise errors.SlideError(f"the label map is {width} x {height} px")


def _damaged(path: Path) -> errors.SlideError:
    return errors.SlideError(f"the label map cannot be decoded: {path}")
