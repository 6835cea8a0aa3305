"""Tile tables: where each tile of each level lies, in one memory-mapped safetensors file.

Counts (bytes of a tile, 0 if it is missing) are u32. A level whose tiles lie one after the other
keeps a u64 offset only for every 64th tile; the others follow by adding counts. Any other level
keeps a u64 offset per tile. What goes before the data of each JPEG tile is kept once.

Tensors: `counts` u32 (tiles of all levels), `offsets` u64 (checkpoints or plain offsets of all
levels), `prefix_ends` u64, `prefixes` u8. Metadata `pathfm.tiles`: JSON with schema and id.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from pathfm_cli import errors

SCHEMA = "pathfm.tiles/1"
BLOCK = 64
"""Tiles between two checkpoints."""
MAX_HEADER_BYTES = 1 << 20
"""The JSON of a table names four tensors and takes some hundred bytes."""
MISSING = np.uint64(0)

Array = np.ndarray[Any, Any]
_DTYPES = {"U64": "<u8", "U32": "<u4", "U8": "|u1"}
_TENSORS = {"offsets": "U64", "prefix_ends": "U64", "counts": "U32", "prefixes": "U8"}


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The rows of one level in the tile table.

    Attributes:
        prefix: number of the level's tile prefix.
        first_tile: row of its first tile in `counts`.
        first_offset: row of its first checkpoint or offset in `offsets`.
        tiles: number of tiles.
        contiguous: whether `offsets` holds checkpoints.
    """

    prefix: int
    first_tile: int
    first_offset: int
    tiles: int
    contiguous: bool

    @property
    def rows(self) -> int:
        """Rows of the level in `offsets`."""
        return -(-self.tiles // BLOCK) if self.contiguous else self.tiles


class Writer:
    """Collects the tiles of levels, then writes them as one file."""

    def __init__(self) -> None:
        self._counts: list[Array] = []
        self._offsets: list[Array] = []
        self._prefixes: dict[bytes, int] = {}
        self._tiles = 0
        self._rows = 0

    def add(self, offsets: Array, counts: Array, prefix: bytes) -> Place:
        """Add a level and return its place.

        Args:
            offsets: (tiles,) byte offsets.
            counts: (tiles,) bytes; 0 means missing.
            prefix: what goes before each tile's data.

        Raises:
            ValueError: a tile has 4 GiB or more.
        """
        counts = np.asarray(counts, np.uint64)
        if counts.size and int(counts.max()) >= 1 << 32:
            raise ValueError("a tile of 4 GiB or more")
        offsets = np.where(counts == MISSING, MISSING, np.asarray(offsets, np.uint64))
        checkpoints = _checkpoints(offsets, counts)
        rows = offsets if checkpoints is None else checkpoints
        return self._put(rows, counts, prefix, contiguous=checkpoints is not None)

    def copy(self, table: TileTable, place: Place) -> Place:
        """Add a level as another table has it; `table.holds(place)` must be true."""
        offsets, counts = table.rows(place)
        return self._put(offsets, counts, table.prefix(place.prefix), contiguous=place.contiguous)

    def _put(self, rows: Array, counts: Array, prefix: bytes, *, contiguous: bool) -> Place:
        place = Place(
            prefix=self._prefixes.setdefault(prefix, len(self._prefixes)),
            first_tile=self._tiles,
            first_offset=self._rows,
            tiles=len(counts),
            contiguous=contiguous,
        )
        self._counts.append(counts.astype("<u4", copy=False))
        self._offsets.append(rows.astype("<u8", copy=False))
        self._tiles += len(counts)
        self._rows += len(rows)
        return place

    def write(self, file: IO[bytes], identity: str) -> None:
        """Write everything to an open file.

        Args:
            file: opened for writing bytes.
            identity: id of the `slides` artifact it belongs to.
        """
        ends = np.cumsum([len(prefix) for prefix in self._prefixes], dtype="<u8")
        parts = {
            "offsets": self._offsets,
            "prefix_ends": [ends],
            "counts": self._counts,
            "prefixes": [np.frombuffer(prefix, np.uint8) for prefix in self._prefixes],
        }
        file.write(_header(parts, identity))
        for arrays in parts.values():
            for array in arrays:
                file.write(array.data)


def _checkpoints(offsets: Array, counts: Array) -> Array | None:
    """The offset of every 64th tile, or None if tiles do not follow each other in each block."""
    blocks = -(-len(counts) // BLOCK)
    padded = np.zeros((blocks, BLOCK), np.uint64)
    padded.flat[: len(counts)] = counts
    before = np.cumsum(padded, axis=1, dtype=np.uint64) - padded
    start = np.zeros((blocks, BLOCK), np.uint64)
    start.flat[: len(counts)] = offsets
    present = padded > MISSING
    # Where a block begins is told by its first tile that is not missing.
    first = np.argmax(present, axis=1)
    rows = np.arange(blocks)
    checkpoints: Array = start[rows, first]
    fits = (start == checkpoints[:, None] + before) | ~present
    return checkpoints if bool(fits.all()) else None


def _header(parts: Mapping[str, list[Array]], identity: str) -> bytes:
    document: dict[str, Any] = {
        "__metadata__": {"pathfm.tiles": json.dumps({"schema": SCHEMA, "id": identity})}
    }
    begin = 0
    for name, arrays in parts.items():
        end = begin + sum(array.nbytes for array in arrays)
        document[name] = {
            "dtype": _TENSORS[name],
            "shape": [sum(len(array) for array in arrays)],
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class TileTable:
    """A tile table opened for reading: memory-mapped, so processes share its pages."""

    def __init__(self, path: Path, identity: str, tensors: Mapping[str, Array]) -> None:
        self.path = path
        self.id = identity
        self._counts = tensors["counts"]
        self._offsets = tensors["offsets"]
        data = tensors["prefixes"].tobytes()
        ends = [0, *(int(end) for end in tensors["prefix_ends"])]
        self._prefixes = [data[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TileTable:
        """Map a tile table.

        Raises:
            errors.InputError: missing, truncated, or not a tile table.
        """
        path = Path(path)
        hint = "make it again: pathfm index ... --overwrite"
        try:
            if not path.is_file():
                raise OSError("no file")  # a named pipe would be waited for
            # A plain array: slices of np.memmap cost five times as much.
            mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))
            identity, tensors = _parse(mapped)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            raise errors.InputError(f"{path} is no tile table, or it is damaged.", hint) from error
        return cls(path, identity, tensors)

    def holds(self, place: Place) -> bool:
        """Whether the table has all rows of `place`."""
        return (
            0 <= place.prefix < len(self._prefixes)
            and 0 <= place.first_tile <= place.first_tile + place.tiles <= len(self._counts)
            and 0 <= place.first_offset <= place.first_offset + place.rows <= len(self._offsets)
        )

    def rows(self, place: Place) -> tuple[Array, Array]:
        """The rows of a level as they are kept: checkpoints or offsets, and counts."""
        return (
            self._offsets[place.first_offset : place.first_offset + place.rows],
            self._counts[place.first_tile : place.first_tile + place.tiles],
        )

    def prefix(self, number: int) -> bytes:
        """What goes before the data of the tiles of a level."""
        return self._prefixes[number]

    def run(self, place: Place, first: int, count: int) -> list[tuple[int, int]]:
        """Byte ranges of `count` tiles that follow each other, from tile `first` of the level.

        Returns:
            (offset, bytes) of each; 0 bytes: the tile is missing.
        """
        begin = place.first_tile + first
        if not place.contiguous:
            start = place.first_offset + first
            offsets = self._offsets[start : start + count].tolist()
            return list(zip(offsets, self._counts[begin : begin + count].tolist(), strict=True))
        block, inside = divmod(first, BLOCK)
        counts = self._counts[begin - inside : begin + count].tolist()
        row = place.first_offset + block
        offset = int(self._offsets[row]) + sum(counts[:inside])
        found = []
        for tile in range(inside, inside + count):
            if tile % BLOCK == 0:
                offset = int(self._offsets[row + tile // BLOCK])
            found.append((offset, counts[tile]))
            offset += counts[tile]
        return found

    def ranges(self, place: Place, tile_ids: Array) -> tuple[Array, Array]:
        """Byte ranges of tiles.

        Args:
            place: the level.
            tile_ids: (N,) int64 in `range(place.tiles)`.

        Returns:
            (N,) u64 offsets and (N,) u32 counts; a count of 0 is a missing tile.
        """
        counts: Array = np.asarray(self._counts[place.first_tile + tile_ids])
        if not place.contiguous:
            return np.asarray(self._offsets[place.first_offset + tile_ids]), counts
        inside = tile_ids % BLOCK
        steps = np.arange(BLOCK)
        begin = place.first_tile + tile_ids - inside
        # Rows past the end of the table are clipped; the mask leaves them out of the sum.
        rows = np.minimum(begin[:, None] + steps, len(self._counts) - 1)
        before = np.where(steps < inside[:, None], self._counts[rows], 0).sum(1, dtype=np.uint64)
        return self._offsets[place.first_offset + tile_ids // BLOCK] + before, counts


def _parse(mapped: Array) -> tuple[str, dict[str, Array]]:
    (size,) = struct.unpack("<Q", mapped[:8].tobytes())
    if not 2 <= size <= min(MAX_HEADER_BYTES, len(mapped) - 8):
        raise ValueError("no safetensors header")
    document = json.loads(mapped[8 : 8 + size].tobytes())
    about = json.loads(document["__metadata__"]["pathfm.tiles"])
    if about["schema"] != SCHEMA:
        raise ValueError("another schema")
    tensors = {}
    for name, dtype in _TENSORS.items():
        entry = document[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] != dtype or not 0 <= begin <= end <= len(mapped) - 8 - size:
            raise ValueError(name)
        tensors[name] = mapped[8 + size + begin : 8 + size + end].view(_DTYPES[dtype])
        if [len(tensors[name])] != entry["shape"]:
            raise ValueError(name)
    ends = tensors["prefix_ends"].astype(np.int64)
    if np.any(np.diff(ends, prepend=0) < 0) or (len(ends) and ends[-1] > len(tensors["prefixes"])):
        raise ValueError("prefixes")
    return about["id"], tensors
