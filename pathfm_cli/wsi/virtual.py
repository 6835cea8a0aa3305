"""All slides of an index as one Zarr 3 group: a group per slide, an array per level.

Nothing is copied: a chunk is a tile where it lies in the slide file, local or remote, decoded by
`zarr_codec`; metadata is made from the index when it is asked for. Pixels are those of
`pyramid.Reader.read_region`, as (3, height, width) uint8.

    group = virtual.open("slides.parquet")
    group["B27/0"][:, 5000:5256, 5000:5256]
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent import futures
from typing import Any

import zarr
from zarr.abc import store as zarr_store
from zarr.core import buffer

from pathfm_cli.wsi import hierarchy

IN_FLIGHT = 64
"""Tiles that are read at once; `zarr.config` has a limit of its own, `async.concurrency`."""


def open(path: str | os.PathLike[str]) -> zarr.Group:
    """Open an index as a read-only Zarr group.

    Args:
        path: a `slides`, `tissue` or `patches` artifact; slides with an error are left out.

    Raises:
        errors.InputError: missing, damaged or of another kind.
    """
    return zarr.open_group(Store(path), mode="r")


class Store(zarr_store.Store):
    """The read-only store of `hierarchy`; picklable, opened at first use.

    Reading a tile raises `errors.SlideError` when the slide cannot be read or has changed since it
    was indexed; a missing tile is a missing chunk, which Zarr fills with white.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(read_only=True)
        self._keys = hierarchy.Hierarchy(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._keys.path}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__init__(read_only=True)
        self._keys = hierarchy.Hierarchy(state["path"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other._keys.path == self._keys.path

    def __hash__(self) -> int:
        return hash(self._keys.path)

    def __str__(self) -> str:
        return f"pathfm://{self._keys.path}"

    def __repr__(self) -> str:
        return f"Store({str(self._keys.path)!r})"

    async def get(
        self,
        key: str,
        prototype: buffer.BufferPrototype,
        byte_range: zarr_store.ByteRequest | None = None,
    ) -> buffer.Buffer | None:
        """The value of a key, or a part of it."""
        data = self._keys.document(key)
        if data is None:
            tile = self._keys.tile(key)
            if tile is None:
                return None
            data = await asyncio.get_running_loop().run_in_executor(_pool(os.getpid()), tile.read)
        return prototype.buffer.from_bytes(data[_part(byte_range)])

    async def get_partial_values(
        self,
        prototype: buffer.BufferPrototype,
        key_ranges: Iterable[tuple[str, zarr_store.ByteRequest | None]],
    ) -> list[buffer.Buffer | None]:
        """The values of many keys, or parts of them, all under way at once."""
        wanted = (self.get(key, prototype, byte_range) for key, byte_range in key_ranges)
        return [*await asyncio.gather(*wanted)]

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return self._keys.document(key) is not None or self._keys.tile(key) is not None

    async def set(self, key: str, value: buffer.Buffer) -> None:
        """Refuse: slides are only read."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: slides are only read."""
        self._check_writable()

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`."""
        for key in self._keys.walk(prefix.rpartition("/")[0]):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a node."""
        for name in self._keys.children(prefix.strip("/")):
            yield name

    # Last: in the body of the class it hides the type of the same name.
    async def list(self) -> AsyncIterator[str]:
        """Every key; a cohort has very many."""
        for key in self._keys.walk():
            yield key


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> futures.ThreadPoolExecutor:
    """Threads that wait for bytes; of this process, because threads do not survive a fork."""
    return futures.ThreadPoolExecutor(IN_FLIGHT, "pathfm-virtual")


def _part(byte_range: zarr_store.ByteRequest | None) -> slice:
    match byte_range:
        case None:
            return slice(None)
        case zarr_store.RangeByteRequest(start, end):
            return slice(start, end)
        case zarr_store.OffsetByteRequest(offset):
            return slice(offset, None)
        case zarr_store.SuffixByteRequest(suffix):
            return slice(-suffix, None)
    raise ValueError(f"unknown byte range {byte_range}")
