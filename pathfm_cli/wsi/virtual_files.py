"""The virtual Zarr as files of fsspec: `pathfm://PATH/slides.parquet/SLIDE/LEVEL/...`.

For programs that take an address and no store: `xarray.open_zarr`, `dask.array.from_zarr`,
`zarr.open`, OME-Zarr readers. Registered by the package's entry point.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import fsspec

from pathfm_cli.wsi import hierarchy

SUFFIX = ".parquet"


class Files(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Read-only; the first part of the path that ends in .parquet is the index."""

    protocol = "pathfm"

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes of a key, or a part of them.

        Raises:
            FileNotFoundError: there is no such key.
            errors.SlideError: a tile cannot be read.
        """
        keys, key = _split(self._strip_protocol(path))
        data = keys.read(key)
        if data is None:
            raise FileNotFoundError(path)
        return data[start:end]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and kind of a key or node.

        Raises:
            FileNotFoundError: there is neither.
        """
        path = self._strip_protocol(path)
        keys, key = _split(path)
        if (document := keys.document(key)) is not None:
            return {"name": path, "size": len(document), "type": "file"}
        if (tile := keys.tile(key)) is not None:
            return {"name": path, "size": tile.count, "type": "file"}
        if keys.children(key):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What lies below a node."""
        path = self._strip_protocol(path)
        keys, key = _split(path)
        found = [self.info(f"{path}/{name}") for name in keys.children(key)]
        if not found:
            found = [self.info(path)]
        return found if detail else [entry["name"] for entry in found]


def _split(path: str) -> tuple[hierarchy.Hierarchy, str]:
    parts = path.split("/")
    for number, part in enumerate(parts, 1):
        if part.endswith(SUFFIX):
            index = "/".join(parts[:number])
            return _hierarchy(index, os.stat(index).st_mtime_ns), "/".join(parts[number:])
    raise FileNotFoundError(f"{path} names no index ({SUFFIX})")


@functools.lru_cache(maxsize=8)
def _hierarchy(path: str, version: int) -> hierarchy.Hierarchy:
    return hierarchy.Hierarchy(path)
