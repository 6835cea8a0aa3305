"""From TIFF directories to a slide: which vendor, which levels, which mpp.

Read are Aperio SVS, OME-TIFF and generic tiled pyramids; of none of them the thumbnail, label or
macro. Every other format is refused by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pathfm_cli import errors
from pathfm_cli.wsi import codecs, labels, mpp, ome, store, tiff

MAX_SIDE_PX = 1 << 24
"""Largest image side; a BigTIFF header can claim anything."""

_FOREIGN_HEADS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image (or the first file of a MIRAX or VMS slide)",
    b"PK\x03\x04": "a ZIP archive",
    b"ZISRAWFI": "a Zeiss CZI file",
    b"\xd0\xcf\x11\xe0": "an OLE file (perhaps Zeiss ZVI)",
    b"SQLite f": "an SQLite file (perhaps a Sakura slide)",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
}
_COMPRESSIONS = {
    1: "raw",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32946: "deflate",
    33003: "jp2k-ycbcr",
    33005: "jp2k-rgb",
    34712: "jp2k-rgb",
    50001: "webp",
}
_REDUCED, _MASK = 1, 4
_RGB = 2
_YCBCR = 6


class Foreign(errors.SlideError):
    """A file of a kind that pathfm does not read itself.

    Attributes:
        what: which kind, with its article.
        slide: whether it is surely a slide of another vendor.
    """

    def __init__(self, name: str, what: str, reason: str, *, slide: bool) -> None:
        super().__init__(f"{name}: {what}, {reason}")
        self.what = what
        self.slide = slide


@dataclasses.dataclass(frozen=True, slots=True)
class Plane:
    """One level of the pyramid as the file has it.

    Attributes:
        directory: where its tile offsets and byte counts are; None where no TIFF tells them.
        prefix: what goes before the data of each tile (`codecs.jpeg_prefix`).
    """

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    codec: str
    prefix: bytes
    directory: tiff.Directory | None

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-self.width_px // self.tile_width_px) * -(-self.height_px // self.tile_height_px)


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """A slide as its headers describe it; `planes[0]` is level 0, the rest get coarser."""

    vendor: str
    resolution: mpp.Resolution
    objective: float | None
    planes: tuple[Plane, ...]


def describe(source: store.Source, name: str) -> Description:
    """Read the headers of a slide.

    Args:
        source: the file.
        name: slide id, for messages.

    Raises:
        Foreign: a file of another kind.
        errors.SlideError: not a slide pathfm reads; the message says what it is.
    """
    head = source.read(0, min(132, source.size))
    if not tiff.is_tiff(head):
        raise Foreign(name, _what(head), "not a TIFF slide", slide=False)
    first = tiff.directories(source, limit=1)[0]
    description = first.text(tiff.IMAGE_DESCRIPTION)
    _refuse_foreign(first, description, name)
    chain = tiff.directories(source)
    if description.startswith("Aperio"):
        return _aperio(chain, description, name)
    if ome.is_ome(description):
        return _ome(chain, description, name)
    return _generic(chain, name)


def _what(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head[128:132] == b"DICM":
        return "a DICOM file"
    for magic, what in _FOREIGN_HEADS.items():
        if head.startswith(magic):
            return what
    return f"a file of unknown type (it begins with {head[:4]!r})"


def _refuse_foreign(first: tiff.Directory, description: str, name: str) -> None:
    software = first.text(tiff.SOFTWARE)
    found = ""
    if tiff.NDPI_FORMAT in first.tags:
        found = "a Hamamatsu NDPI"
    elif software.startswith("Philips") or "<DataObject ObjectType=" in description:
        found = "a Philips TIFF"
    elif "leica-microsystems.com/scn" in description:
        found = "a Leica SCN"
    elif software.startswith("MedScan"):
        found = "a Trestle TIFF"
    elif b"<iScan" in first.data(tiff.XMP):
        found = "a Ventana BIF"
    elif "PerkinElmer-QPI" in description:
        found = "a PerkinElmer QPTIFF"
    if found:
        raise Foreign(name, found, "which is not supported", slide=True)


def _aperio(chain: Sequence[tiff.Directory], description: str, name: str) -> Description:
    base = chain[0]
    if labels.is_label(base):
        base = _base(chain, name)
        description = base.text(tiff.IMAGE_DESCRIPTION)
    keys = _aperio_keys(description)
    objective = _positive(keys.get("AppMag"))
    declared = None
    if "MPP" in keys:
        value = _positive(keys["MPP"]) or 0.0
        declared = (value, value)
    resolution = mpp.resolve(declared, "aperio", _tag_mpp(base), objective)
    return Description("aperio", resolution, objective, _planes(base, chain, name))


def _aperio_keys(description: str) -> dict[str, str]:
    """`KEY = VALUE` fields between `|`; the first of each key counts."""
    keys: dict[str, str] = {}
    for field in description.split("|")[1:]:
        key, equals, value = field.partition("=")
        if equals:
            keys.setdefault(key.strip(), value.strip())
    return keys


def _ome(chain: Sequence[tiff.Directory], description: str, name: str) -> Description:
    document = ome.parse(description, name)
    chain = _no_labels(chain, document)
    base = _base(chain, name)
    planes = _planes(base, base.children or chain, name)
    size = (planes[0].width_px, planes[0].height_px)
    for image in document.images:
        if (image.width_px, image.height_px) == size:
            break
    else:
        raise errors.SlideError(f"{name}: its OME-XML describes no image of {size[0]}x{size[1]} px")
    if image.size_c != 3 or image.planes != 1 or image.pixel_type != "uint8":
        raise errors.SlideError(
            f"{name}: {image.size_c} channels, {image.planes} planes of {image.pixel_type}; "
            "pathfm reads bright-field RGB (fluorescence is not supported)"
        )
    declared = image.mpp if any(image.mpp) else None
    resolution = mpp.resolve(declared, "ome", _tag_mpp(base), document.objective)
    return Description("ome", resolution, document.objective, planes)


def _no_labels(chain: Sequence[tiff.Directory], document: ome.Document) -> Sequence[tiff.Directory]:
    """The directories that hold none of the images that are named as labels.

    A directory number may mean another file of a set, so it does not count against the size.
    """
    named: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    for image in document.images:
        named[image.label].add((image.width_px, image.height_px))
    return [
        directory
        for number, directory in enumerate(chain)
        if _size(directory) not in named[True]
        and (number not in document.label_ifds or _size(directory) in named[False])
    ]


def _generic(chain: Sequence[tiff.Directory], name: str) -> Description:
    base = _base(chain, name)
    resolution = mpp.resolve(None, "", _tag_mpp(base), None)
    planes = _planes(base, (*base.children, *chain), name)
    return Description("generic-tiff", resolution, None, planes)


def _tag_mpp(directory: tiff.Directory) -> tuple[float, float]:
    return mpp.from_tags(
        directory.rational(tiff.X_RESOLUTION),
        directory.rational(tiff.Y_RESOLUTION),
        directory.number(tiff.RESOLUTION_UNIT, 2),
    )


def _base(chain: Sequence[tiff.Directory], name: str) -> tiff.Directory:
    """Level 0: of the images that are no label or mask and no reduced copy, the largest in tiles.

    Where every image calls itself reduced, the largest of these.
    """
    images = [
        directory
        for directory in chain
        if not (directory.number(tiff.NEW_SUBFILE_TYPE) & _MASK or labels.is_label(directory))
    ]
    if not images:
        raise errors.SlideError(
            f"{name}: only images that are a label, macro, overview, thumbnail or mask by their "
            "kind, description or name, which are not read"
        )
    full = [one for one in images if not one.number(tiff.NEW_SUBFILE_TYPE) & _REDUCED]
    tiled = [directory for directory in full or images if tiff.TILE_WIDTH in directory.tags]
    if not tiled:
        raise errors.SlideError(f"{name}: a TIFF in strips, not in tiles; convert it to tiles")
    return max(tiled, key=lambda directory: _size(directory)[0] * _size(directory)[1])


def _planes(
    base: tiff.Directory, candidates: Sequence[tiff.Directory], name: str
) -> tuple[Plane, ...]:
    """Level 0 and, finest first, every candidate that is a smaller tiled copy, no label."""
    planes = {_size(base): _plane(base, name)}
    for directory in candidates:
        size = _size(directory)
        fits = _is_level(directory, size, _size(base)) and size not in planes
        if fits and not labels.is_label(directory):
            planes[size] = _plane(directory, name)
    return tuple(sorted(planes.values(), key=lambda plane: -plane.width_px))


def _is_level(directory: tiff.Directory, size: tuple[int, int], base: tuple[int, int]) -> bool:
    """Tiled, no mask or macro, smaller than level 0, same shape but for rounding the size."""
    if tiff.TILE_WIDTH not in directory.tags or directory.number(tiff.NEW_SUBFILE_TYPE) > 1:
        return False
    if not (0 < size[0] < base[0] and 0 < size[1] <= base[1]):
        return False
    scale = base[0] / size[0]
    # Sizes are rounded down or up, each by less than a pixel: in y, and through `scale` from x.
    slack = 1 + size[1] / size[0]
    return abs(base[1] / scale - size[1]) <= slack


def _size(directory: tiff.Directory) -> tuple[int, int]:
    return directory.number(tiff.IMAGE_WIDTH), directory.number(tiff.IMAGE_LENGTH)


def _plane(directory: tiff.Directory, name: str) -> Plane:
    if tiff.TILE_WIDTH not in directory.tags:
        raise errors.SlideError(f"{name}: a TIFF in strips, not in tiles; convert it to tiles")
    width, height = _size(directory)
    tile_width = directory.number(tiff.TILE_WIDTH)
    tile_height = directory.number(tiff.TILE_LENGTH)
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise errors.SlideError(f"{name}: an image of {width}x{height} px is not plausible")
    if not (0 < tile_width and 0 < tile_height <= codecs.MAX_TILE_PIXELS // tile_width):
        raise errors.SlideError(f"{name}: tiles of {tile_width}x{tile_height} px are not plausible")
    codec = _codec(directory, name)
    prefix = b""
    if codec.startswith("jpeg"):
        try:
            prefix = codecs.jpeg_prefix(codec, directory.data(tiff.JPEG_TABLES))
        except ValueError as error:
            raise errors.SlideError(f"{name}: {error}") from error
    return Plane(width, height, tile_width, tile_height, codec, prefix, directory)


def _codec(directory: tiff.Directory, name: str) -> str:
    compression = directory.number(tiff.COMPRESSION, 1)
    codec = _COMPRESSIONS.get(compression)
    if codec is None:
        raise errors.SlideError(f"{name}: TIFF compression {compression} is not supported")
    photometric = directory.number(tiff.PHOTOMETRIC)
    _require_rgb(directory, photometric, codec, name)
    if codec == "jpeg":
        return "jpeg-ycbcr" if photometric == _YCBCR else "jpeg-rgb"
    predictor = directory.number(tiff.PREDICTOR, 1)
    if codec in ("lzw", "deflate") and predictor == 2:
        return f"{codec}-delta"
    if codec in ("lzw", "deflate", "raw") and predictor != 1:
        raise errors.SlideError(f"{name}: TIFF predictor {predictor} is not supported")
    return codec


def _require_rgb(directory: tiff.Directory, photometric: int, codec: str, name: str) -> None:
    samples = directory.number(tiff.SAMPLES_PER_PIXEL, 1)
    bits = set(directory.numbers(tiff.BITS_PER_SAMPLE, 8)) or {1}
    formats = set(directory.numbers(tiff.SAMPLE_FORMAT, 8)) or {1}
    photometrics = (_RGB, _YCBCR) if codec.startswith("j") else (_RGB,)
    if samples != 3 or bits != {8} or formats != {1} or photometric not in photometrics:
        raise errors.SlideError(
            f"{name}: {samples} samples of {max(bits)} bits, photometric {photometric}; "
            "pathfm reads 8-bit RGB (fluorescence is not supported)"
        )
    if directory.number(tiff.PLANAR_CONFIGURATION, 1) != 1:
        raise errors.SlideError(f"{name}: colours in separate planes are not supported")


def _positive(text: str | None) -> float | None:
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if value > 0 else None
