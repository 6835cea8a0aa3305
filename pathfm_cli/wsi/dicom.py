"""DICOM whole-slide images (VL Whole Slide Microscopy): levels and where their frames lie.

Read are tiled full and tiled sparse pyramids of 8-bit RGB: JPEG, JPEG 2000 or uncompressed. One
instance is one level; label, overview and thumbnail are left out. Source of the layout: DICOM
PS3.3 A.32.8 and C.8.12.4, PS3.5 A.4 (encapsulated pixel data). Needs the extra `dicom`.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathfm_cli import errors
from pathfm_cli.wsi import ahead, codecs, mpp, series, store, vendor

MAX_FRAMES = 1 << 24
"""Tiles of all levels."""
MAX_ELEMENT_BYTES = 256 << 20
"""Larger values of a header are not read."""
MAX_ITEMS = 1 << 21
"""Items of sequences in a header, 600 B each in memory; a sparse level has some four a frame."""
JPEG_HEAD_BYTES = 4096
"""Where the markers of a tile are looked for."""
CHECKED_FRAMES = 16
"""Frames whose own length is compared with the offset table."""
MAX_REMOTE_HEADERS = 256
"""Frames of a file without an offset table, each of which costs a request."""

_RAW = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_JPEG = ("1.2.840.10008.1.2.4.50",)
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_ITEM = b"\xfe\xff\x00\xe0"
_ITEM_BIG_ENDIAN = b"\xff\xfe\xe0\x00"
_UNDEFINED = 0xFFFFFFFF
_AUXILIARY = {"LABEL", "OVERVIEW", "THUMBNAIL"}

Array = np.ndarray[Any, Any]
Table = tuple[Array, Array]
"""(tiles,) uint64 offsets and byte counts."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Instance:
    """One file: its header, and where its pixel data element begins."""

    part: series.Part
    source: store.Source
    header: Any
    pixels: int


def describe(source: series.Series, name: str) -> tuple[vendor.Description, list[Table]]:
    """Read the headers of a slide.

    Args:
        source: its files.
        name: slide id, for messages.

    Returns:
        The slide, and for each of its planes where the tiles lie in `source`.

    Raises:
        errors.SlideError: no slide that pathfm reads, or the extra is absent; the message says.
    """
    instances = _instances(source, name)
    try:
        return _describe(instances, name)
    except errors.SlideError:
        raise
    except Exception as error:
        # Values are parsed when they are asked for, and a damaged one can raise anything.
        raise _damaged(source.uri, name, error) from error


def headers(source: series.Series, name: str) -> list[Any]:
    """The data sets of every file of a series, without pixels.

    Raises:
        errors.SlideError: as `describe`.
    """
    return [one.header for one in _instances(source, name)]


def is_auxiliary(header: Any) -> bool:
    """Whether it is a label, overview or thumbnail image, which may show a patient's name."""
    return bool({str(value) for value in header.get("ImageType", ())} & _AUXILIARY)


def _instances(source: series.Series, name: str) -> list[_Instance]:
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise errors.SlideError(
            f"{name}: a DICOM slide, which needs an extra: pip install 'pathfm[dicom]'"
        ) from error
    return [_read(part, name) for part in source.parts]


def _describe(instances: Sequence[_Instance], name: str) -> tuple[vendor.Description, list[Table]]:
    if len({str(one.header.get("SeriesInstanceUID")) for one in instances}) > 1:
        raise errors.SlideError(f"{name}: the folder holds several series; give each its own")
    volumes = [one for one in instances if _is_volume(one.header)]
    if not volumes:
        raise errors.SlideError(f"{name}: a DICOM series without a slide image (VOLUME)")
    volumes.sort(key=lambda one: -int(one.header.TotalPixelMatrixColumns))
    planes, tables, frames = [], [], 0
    for one in volumes:
        plane = _plane(one.header, name)
        frames += plane.tiles
        if frames > MAX_FRAMES:
            raise errors.SlideError(f"{name}: {frames} tiles are not plausible")
        tables.append(_table(one, plane, name))
        planes.append(_coloured(plane, one, tables[-1]))
    _check_pyramid(planes, name)
    base = volumes[0].header
    objective = _objective(base)
    resolution = mpp.resolve(_spacing_um(base), "dicom", (0.0, 0.0), objective)
    return vendor.Description("dicom", resolution, objective, tuple(planes)), tables


class _File(io.RawIOBase):
    """A source as a file that pydicom reads."""

    def __init__(self, source: store.Source) -> None:
        self._source = source
        self._at = self._items = 0
        self.name = source.uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._source.size - self._at))
        data = self._source.read(self._at, count)
        self._items += data.count(_ITEM) + data.count(_ITEM_BIG_ENDIAN)
        if self._items > MAX_ITEMS:
            raise errors.SlideError(f"{self.name}: more than {MAX_ITEMS} items are not plausible")
        buffer[:count] = data
        self._at += count
        return count

    def readall(self) -> bytes:
        """Refused: pydicom reads all at once only to inflate a deflated header, to any size."""
        raise errors.SlideError(f"{self.name}: a deflated DICOM file")


def _read(part: series.Part, name: str) -> _Instance:
    import pydicom

    source = ahead.Ahead(part.open())
    file = io.BufferedReader(_File(source), 64 << 10)
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, defer_size=MAX_ELEMENT_BYTES)
    except errors.SlideError:
        raise
    except Exception as error:
        # pydicom takes what its file raises for the end of it.
        if isinstance(error.__context__, errors.SlideError):
            raise error.__context__ from error
        # Whatever a damaged header makes of the parser, it is this file that cannot be read.
        raise _damaged(part.uri, name, error) from error
    return _Instance(part, source, header, file.tell())


def _damaged(uri: str, name: str, error: Exception) -> errors.SlideError:
    what = (str(error) or type(error).__name__).splitlines()[0]
    return errors.SlideError(f"{name}: {uri} is damaged, or no DICOM slide ({what[:100]})")


def _is_volume(header: Any) -> bool:
    kinds = {str(value) for value in header.get("ImageType", ())}
    return "VOLUME" in kinds and not is_auxiliary(header) and "TotalPixelMatrixColumns" in header


def _plane(header: Any, name: str) -> vendor.Plane:
    if "ConcatenationUID" in header and int(header.get("InConcatenationTotalNumber", 2)) != 1:
        raise errors.SlideError(f"{name}: a level in several files (concatenation)")
    for keyword, what in (
        ("TotalPixelMatrixFocalPlanes", "focal planes"),
        ("NumberOfOpticalPaths", "optical paths"),
    ):
        if int(header.get(keyword, 1)) != 1:
            raise errors.SlideError(f"{name}: {header[keyword].value} {what}; pathfm reads one")
    samples, bits = int(header.SamplesPerPixel), int(header.BitsAllocated)
    if samples != 3 or bits != 8 or int(header.get("PlanarConfiguration", 0)) != 0:
        raise errors.SlideError(
            f"{name}: {samples} samples of {bits} bits; pathfm reads 8-bit RGB "
            "(fluorescence is not supported)"
        )
    width, height = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
    tile_width, tile_height = int(header.Columns), int(header.Rows)
    if not (0 < width <= vendor.MAX_SIDE_PX and 0 < height <= vendor.MAX_SIDE_PX):
        raise errors.SlideError(f"{name}: an image of {width}x{height} px is not plausible")
    if not (0 < tile_width and 0 < tile_height <= codecs.MAX_TILE_PIXELS // tile_width):
        raise errors.SlideError(f"{name}: tiles of {tile_width}x{tile_height} px are not plausible")
    codec = _codec(header, name)
    prefix = codecs.jpeg_prefix(codec, b"") if codec.startswith("jpeg") else b""
    return vendor.Plane(width, height, tile_width, tile_height, codec, prefix, None)


def _codec(header: Any, name: str) -> str:
    syntax = str(header.file_meta.TransferSyntaxUID)
    colours = str(header.PhotometricInterpretation)
    if syntax in _JPEG and colours in ("YBR_FULL_422", "YBR_FULL", "RGB"):
        return "jpeg-rgb" if colours == "RGB" else "jpeg-ycbcr"
    # YBR_ICT and YBR_RCT are undone by the codestream's own transform.
    if syntax in _JPEG_2000 and colours in ("YBR_ICT", "YBR_RCT", "RGB", "YBR_FULL"):
        return "jp2k-ycbcr" if colours == "YBR_FULL" else "jp2k-rgb"
    if syntax in _RAW and colours == "RGB":
        return "raw"
    raise errors.SlideError(f"{name}: DICOM transfer syntax {syntax} with {colours} colours")


def _coloured(plane: vendor.Plane, one: _Instance, table: Table) -> vendor.Plane:
    """Believe the JPEG stream where its own Adobe marker says RGB.

    Some converters write RGB JPEG and leave a YBR photometric interpretation in the header.
    """
    offsets, counts = table
    if plane.codec != "jpeg-ycbcr":
        return plane
    first = int(np.argmax(counts > 0))
    size = min(int(counts[first]), JPEG_HEAD_BYTES)
    data = one.source.read(int(offsets[first]) - one.part.begin, size)
    if not codecs.says_rgb(data):
        return plane
    return dataclasses.replace(plane, codec="jpeg-rgb", prefix=codecs.jpeg_prefix("jpeg-rgb", b""))


def _spacing_um(header: Any) -> tuple[float, float] | None:
    """(x, y) um/px; DICOM states mm between rows, then between columns."""
    try:
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        rows, columns = (float(value) * 1e3 for value in measures.PixelSpacing)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    return columns, rows


def _objective(header: Any) -> float | None:
    try:
        return float(header.OpticalPathSequence[0].ObjectiveLensPower)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _check_pyramid(planes: Sequence[vendor.Plane], name: str) -> None:
    base = planes[0]
    for finer, plane in zip(planes, planes[1:], strict=False):
        skew = plane.height_px * base.width_px / (plane.width_px * base.height_px)
        if plane.width_px >= finer.width_px or not 0.9 < skew < 1.1:
            raise errors.SlideError(
                f"{name}: {plane.width_px}x{plane.height_px} px is no smaller level of "
                f"{finer.width_px}x{finer.height_px} px"
            )


def _table(one: _Instance, plane: vendor.Plane, name: str) -> Table:
    """Where each tile lies in the series; 0 bytes where a sparse level has none."""
    frames = int(one.header.get("NumberOfFrames", 1))
    if not 0 < frames <= plane.tiles:
        raise errors.SlideError(f"{name}: {frames} frames for {plane.tiles} tiles")
    begins, lengths = _frames(one, plane, frames, name)
    ends = begins + lengths
    if int(ends.max(initial=0)) > one.part.size or np.any(ends < begins):
        raise errors.SlideError(f"{name}: {one.part.uri} is cut short")
    numbers = _numbers(one.header, plane, frames, name)
    offsets = np.zeros(plane.tiles, np.uint64)
    counts = np.zeros(plane.tiles, np.uint64)
    offsets[numbers] = begins + np.uint64(one.part.begin)
    counts[numbers] = lengths
    return offsets, counts


def _numbers(header: Any, plane: vendor.Plane, frames: int, name: str) -> Array:
    """(frames,) number of the tile that each frame shows."""
    if str(header.get("DimensionOrganizationType", "")) == "TILED_FULL":
        if frames != plane.tiles:
            raise errors.SlideError(f"{name}: {frames} frames for {plane.tiles} tiles (tiled full)")
        return np.arange(frames)
    groups = header.PerFrameFunctionalGroupsSequence
    if len(groups) != frames:
        raise errors.SlideError(f"{name}: {len(groups)} positions for {frames} frames")
    columns = -(-plane.width_px // plane.tile_width_px)
    numbers = np.empty(frames, np.int64)
    for frame, group in enumerate(groups):
        place = group.PlanePositionSlideSequence[0]
        x = int(place.ColumnPositionInTotalImagePixelMatrix) - 1
        y = int(place.RowPositionInTotalImagePixelMatrix) - 1
        column, left = divmod(x, plane.tile_width_px)
        row, top = divmod(y, plane.tile_height_px)
        if left or top or not (0 <= column < columns and 0 <= row * columns < plane.tiles):
            raise errors.SlideError(f"{name}: frame {frame} at ({x}, {y}) px is off the grid")
        numbers[frame] = row * columns + column
    if len(np.unique(numbers)) != frames:
        raise errors.SlideError(f"{name}: several frames at one place")
    return numbers


def _frames(one: _Instance, plane: vendor.Plane, frames: int, name: str) -> Table:
    """(frames,) uint64: where the data of each begins in its file, and its bytes."""
    implicit = str(one.header.file_meta.TransferSyntaxUID) == _RAW[0]
    head = one.source.read(one.pixels, 12)
    if head[:4] != b"\xe0\x7f\x10\x00":
        raise errors.SlideError(f"{name}: {one.part.uri} has no pixel data")
    start = one.pixels + (8 if implicit else 12)
    (length,) = struct.unpack("<I", head[4:8] if implicit else head[8:12])
    if plane.codec == "raw":
        size = plane.tile_width_px * plane.tile_height_px * 3
        if length != _UNDEFINED and length < frames * size:
            raise errors.SlideError(f"{name}: {one.part.uri} has too little pixel data")
        begins = start + np.arange(frames, dtype=np.uint64) * np.uint64(size)
        return begins, np.full(frames, size, np.uint64)
    table_bytes = _item(one.source, start, name)
    first = start + 8 + table_bytes
    if "ExtendedOffsetTable" in one.header:
        offsets = np.frombuffer(one.header.ExtendedOffsetTable, "<u8")
        lengths = np.frombuffer(one.header.ExtendedOffsetTableLengths, "<u8")
    elif table_bytes:
        if table_bytes != 4 * frames:
            raise errors.SlideError(f"{name}: {table_bytes // 4} offsets for {frames} frames")
        offsets = np.frombuffer(one.source.read(start + 8, table_bytes), "<u4").astype(np.uint64)
        last = _item(one.source, first + int(offsets[-1]), name)
        lengths = np.append(np.diff(offsets) - np.uint64(8), np.uint64(last))
    else:
        offsets, lengths = _walk(one, first, frames, name)
    if len(offsets) != frames or len(lengths) != frames:
        raise errors.SlideError(f"{name}: {len(offsets)} offsets for {frames} frames")
    begins = np.uint64(first + 8) + offsets
    for frame in np.unique(np.linspace(0, frames - 1, CHECKED_FRAMES).astype(int)).tolist():
        stated = _item(one.source, int(begins[frame]) - 8, name)
        # Lengths of the extended table leave out the byte that makes a fragment even.
        if not 0 <= stated - int(lengths[frame]) <= 1:
            raise errors.SlideError(f"{name}: frame {frame} lies in several fragments")
    return begins, lengths


def _walk(one: _Instance, at: int, frames: int, name: str) -> Table:
    """Frames of a file without an offset table: from item to item, one frame each."""
    if store.is_remote(one.part.uri) and frames > MAX_REMOTE_HEADERS:
        raise errors.SlideError(
            f"{name}: {one.part.uri} has no offset table; index a local copy, or rewrite it"
        )
    begin, offsets, lengths = at, [], []
    for _ in range(frames):
        length = _item(one.source, at, name)
        offsets.append(at - begin)
        lengths.append(length)
        at += 8 + length
    if one.source.read(at, 4) == _ITEM:
        raise errors.SlideError(f"{name}: {one.part.uri} has more fragments than frames")
    return np.array(offsets, np.uint64), np.array(lengths, np.uint64)


def _item(source: store.Source, at: int, name: str) -> int:
    """Bytes of the item at `at`."""
    head = source.read(at, 8)
    if head[:4] != _ITEM:
        raise errors.SlideError(f"{name}: a damaged table of frames")
    return int.from_bytes(head[4:], "little")
