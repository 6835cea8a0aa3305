"""TIFF and BigTIFF tags, read by byte range and bounded; see docs/adr/0001-own-tiff-parser.md.

Nothing is read ahead: only the directories, and of their values those that are asked for. Every
count and offset of the file is checked against limits and the file's size before it is used.
Source of the layout: TIFF 6.0 (sections 2, 15), the BigTIFF proposal, TIFF Tech Note 1 (SubIFDs).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from pathfm_cli import errors
from pathfm_cli.wsi import store

MAX_DIRECTORIES = 1024
MAX_TAGS = 4096
MAX_VALUE_BYTES = 128 << 20

NEW_SUBFILE_TYPE = 254
IMAGE_WIDTH = 256
IMAGE_LENGTH = 257
BITS_PER_SAMPLE = 258
COMPRESSION = 259
PHOTOMETRIC = 262
IMAGE_DESCRIPTION = 270
SAMPLES_PER_PIXEL = 277
X_RESOLUTION = 282
Y_RESOLUTION = 283
PLANAR_CONFIGURATION = 284
PAGE_NAME = 285
RESOLUTION_UNIT = 296
SOFTWARE = 305
PREDICTOR = 317
TILE_WIDTH = 322
TILE_LENGTH = 323
TILE_OFFSETS = 324
TILE_BYTE_COUNTS = 325
SUB_IFDS = 330
SAMPLE_FORMAT = 339
JPEG_TABLES = 347
XMP = 700
NDPI_FORMAT = 65420

_TYPES: dict[int, str] = {
    **{1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4"},
    **{11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"},
}
_RATIONALS = (5, 10)
_UNSIGNED = (1, 3, 4, 13, 16, 18)


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
    """Where a value lies: `count` items of TIFF `type` at `offset` of the file."""

    type: int
    count: int
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole value."""
        return self.count * np.dtype(_TYPES[self.type]).itemsize * (1 + (self.type in _RATIONALS))


@dataclasses.dataclass(frozen=True, slots=True)
class Directory:
    """One image file directory; values are read from the source when they are asked for."""

    source: store.Source
    order: str
    tags: Mapping[int, Tag]
    children: tuple[Directory, ...] = ()

    def array(self, tag: int) -> np.ndarray[Any, Any]:
        """The unsigned integers of `tag`; empty if the tag is absent.

        Raises:
            errors.SlideError: other numbers, too many, or past the end of the file.
        """
        entry = self.tags.get(tag)
        if entry is None:
            return np.empty(0, np.uint32)
        if entry.type not in _UNSIGNED:
            raise errors.SlideError(f"{self.source.uri}: TIFF tag {tag} has type {entry.type}")
        return np.frombuffer(self._bytes(tag, entry), self.order + _TYPES[entry.type])

    def number(self, tag: int, default: int = 0) -> int:
        """The first integer of `tag`, or `default` if it has none."""
        return next(iter(self.numbers(tag, 1)), default)

    def numbers(self, tag: int, most: int) -> tuple[int, ...]:
        """At most `most` integers of `tag`; none if it is absent or holds no integers."""
        entry = self.tags.get(tag)
        if entry is None or _TYPES[entry.type].startswith("f"):
            return ()
        few = dataclasses.replace(entry, count=min(entry.count, most))
        data = self._bytes(tag, few)
        return tuple(int(value) for value in np.frombuffer(data, self.order + _TYPES[entry.type]))

    def data(self, tag: int) -> bytes:
        """The raw bytes of `tag`, empty if it is absent."""
        entry = self.tags.get(tag)
        return b"" if entry is None else self._bytes(tag, entry)

    def text(self, tag: int) -> str:
        """The text of `tag` up to its first NUL, UTF-8 with bad bytes replaced."""
        return self.data(tag).partition(b"\0")[0].decode("utf-8", "replace")

    def start(self, tag: int, most_bytes: int) -> str:
        """The first `most_bytes` of the text of `tag`, UTF-8 with bad bytes replaced."""
        entry = self.tags.get(tag)
        if entry is None:
            return ""
        data = self.source.read(entry.offset, min(entry.size_bytes, most_bytes))
        return data.partition(b"\0")[0].decode("utf-8", "replace")

    def rational(self, tag: int) -> float:
        """The first rational (or number) of `tag`; 0.0 if absent or the denominator is 0."""
        entry = self.tags.get(tag)
        if entry is None or entry.count != 1:
            return 0.0
        data = self._bytes(tag, entry)
        values = np.frombuffer(data, self.order + _TYPES[entry.type]).tolist()
        if len(values) == 1:
            return float(values[0])
        return float(values[0] / values[1]) if values[1] else 0.0

    def _bytes(self, tag: int, entry: Tag) -> bytes:
        if entry.size_bytes > MAX_VALUE_BYTES:
            raise errors.SlideError(
                f"{self.source.uri}: TIFF tag {tag} claims {entry.size_bytes} bytes"
            )
        return self.source.read(entry.offset, entry.size_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """Sizes that differ between classic TIFF and BigTIFF."""

    order: str
    count: str
    entry: str
    offset: str


def is_tiff(head: bytes) -> bool:
    """Whether the first 4 bytes of a file are those of a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def directories(source: store.Source, limit: int | None = None) -> list[Directory]:
    """Read the chain of directories and, as their `children`, the SubIFDs (one level deep).

    Args:
        source: the file.
        limit: read only this many directories of the chain.

    Raises:
        errors.SlideError: not a TIFF, damaged, or beyond the limits of this module.
    """
    layout, offset = _header(source)
    seen: set[int] = set()
    chain: list[Directory] = []
    while offset and len(chain) != limit:
        directory, offset = _directory(source, layout, offset, seen)
        children = tuple(
            _directory(source, layout, child, seen)[0]
            for child in directory.numbers(SUB_IFDS, MAX_DIRECTORIES)
        )
        chain.append(dataclasses.replace(directory, children=children))
    if not chain:
        raise errors.SlideError(f"{source.uri}: a TIFF without an image")
    return chain


def _header(source: store.Source) -> tuple[_Layout, int]:
    head = source.read(0, min(16, source.size))
    if not is_tiff(head):
        raise errors.SlideError(f"{source.uri}: not a TIFF file")
    order = "<" if head[:2] == b"II" else ">"
    if head[2:4].strip(b"\0") == b"*":
        layout = _Layout(order, "H", "HHI4s", "I")
        at = 4
    else:
        layout = _Layout(order, "Q", "HHQ8s", "Q")
        at = 8
    size = struct.calcsize(order + layout.offset)
    if len(head) < at + size:
        raise errors.SlideError(f"{source.uri}: a TIFF that is cut short")
    return layout, struct.unpack(order + layout.offset, head[at : at + size])[0]


def _directory(
    source: store.Source, layout: _Layout, offset: int, seen: set[int]
) -> tuple[Directory, int]:
    """Read the directory at `offset`; return it and the offset of the next one."""
    if offset in seen:
        raise errors.SlideError(f"{source.uri}: its TIFF directories form a loop")
    seen.add(offset)
    if len(seen) > MAX_DIRECTORIES:
        raise errors.SlideError(f"{source.uri}: more than {MAX_DIRECTORIES} TIFF directories")
    order = layout.order
    count_size = struct.calcsize(order + layout.count)
    entry_size = struct.calcsize(order + layout.entry)
    next_size = struct.calcsize(order + layout.offset)
    (count,) = struct.unpack(order + layout.count, source.read(offset, count_size))
    if not 0 < count <= MAX_TAGS:
        raise errors.SlideError(f"{source.uri}: a TIFF directory claims {count} tags")
    data = source.read(offset + count_size, count * entry_size + next_size)
    tags: dict[int, Tag] = {}
    for index, entry in enumerate(struct.iter_unpack(order + layout.entry, data[:-next_size])):
        place = offset + count_size + index * entry_size
        tag = _tag(layout, entry, place)
        if tag is not None:
            tags.setdefault(entry[0], tag)
    (following,) = struct.unpack(order + layout.offset, data[-next_size:])
    return Directory(source, order, tags), following


def _tag(layout: _Layout, entry: tuple[int, int, int, bytes], place: int) -> Tag | None:
    """One entry; a small value lies in the entry itself, whose own place is then its offset."""
    _, kind, count, value = entry
    if kind not in _TYPES:
        return None
    tag = Tag(kind, count, place + struct.calcsize(layout.order + layout.entry) - len(value))
    if tag.size_bytes <= len(value):
        return tag
    return dataclasses.replace(tag, offset=struct.unpack(layout.order + layout.offset, value)[0])
