"""Hostile and broken files, each made by one small function."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tifffile

Make = Callable[[Path], Path]
"""Given an empty folder, make the file in it (and what it needs), and return its path."""


def raw(data: bytes, suffix: str) -> Make:
    """A file with these bytes."""

    def make(folder: Path) -> Path:
        path = folder / f"bad{suffix}"
        path.write_bytes(data)
        return path

    return make


def cut(source: Path, share: float) -> Make:
    """The first part of a good file; a share above 1 means all but the last byte."""

    def make(folder: Path) -> Path:
        whole = source.read_bytes()
        size = len(whole) - 1 if share > 1 else int(len(whole) * share)
        return raw(whole[:size], source.suffix)(folder)

    return make


def folder_instead(folder: Path) -> Path:
    path = folder / "bad.parquet"
    path.mkdir()
    return path


def dangling_link(folder: Path) -> Path:
    path = folder / "bad.parquet"
    path.symlink_to(folder / "gone.parquet")
    return path


def link_loop(folder: Path) -> Path:
    path = folder / "bad.parquet"
    path.symlink_to(path)
    return path


def pipe_instead(folder: Path) -> Path:
    path = folder / "bad.parquet"
    os.mkfifo(path)
    return path


def device_instead(folder: Path) -> Path:
    path = folder / "bad.parquet"
    path.symlink_to("/dev/zero")
    return path


def retold(source: Path, **changes: Any) -> Make:
    """A good table whose `pathfm` metadata has other values; None deletes one."""

    def make(folder: Path) -> Path:
        metadata = dict(pl.read_parquet_metadata(source))
        document = json.loads(metadata["pathfm"]) | changes
        metadata["pathfm"] = json.dumps({k: v for k, v in document.items() if v is not None})
        return _table(folder, pl.read_parquet(source), metadata)

    return make


def described_as(source: Path, text: str) -> Make:
    """A good table with this text as its `pathfm` metadata."""

    def make(folder: Path) -> Path:
        return _table(folder, pl.read_parquet(source), {"pathfm": text})

    return make


def attached(source: Path, values: Mapping[str, str]) -> Make:
    """A good table with more, or other, entries in its metadata."""

    def make(folder: Path) -> Path:
        metadata = dict(pl.read_parquet_metadata(source))
        return _table(folder, pl.read_parquet(source), metadata | values)

    return make


def reframed(source: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Make:
    """A good table with other rows or columns, its companions named as before."""

    def make(folder: Path) -> Path:
        metadata = dict(pl.read_parquet_metadata(source))
        document = json.loads(metadata["pathfm"])
        document["files"] = {
            name: os.path.relpath(source.parent / path, folder)
            for name, path in document["files"].items()
        }
        metadata["pathfm"] = json.dumps(document)
        return _table(folder, change(pl.read_parquet(source)), metadata)

    return make


def _table(folder: Path, frame: pl.DataFrame, metadata: Mapping[str, str]) -> Path:
    path = folder / "bad.parquet"
    kept = {k: v for k, v in metadata.items() if k != "ARROW:schema"}
    frame.write_parquet(path, metadata=kept)
    return path


def safetensors(
    header: Any, data: bytes = b"", size: int | None = None, name: str = "bad.safetensors"
) -> Make:
    """A safetensors file with this header (JSON, or bytes as they are) and stated header size."""

    def make(folder: Path) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = folder / name
        path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
        return path

    return make


class Bomb:
    """What an attacker pickles: unpickling it would make the file `ran` in the working folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return {
            "system": (os.system, ("touch ran",)),
            "exec": (exec, ("open('ran', 'w').close()",)),
            "eval": (eval, ("open('ran', 'w').close()",)),
            "getenv": (os.getenv, ("HOME",)),
            "open": (open, ("ran", "w")),
        }[self.name]


def pickled(value: Any, suffix: str = ".pth", protocol: int = 2) -> Make:
    """A bare pickle."""
    return raw(pickle.dumps(value, protocol), suffix)


def zipped(entries: Mapping[str, bytes], suffix: str = ".pth", *, packed: bool = False) -> Make:
    """A zip as torch writes it, with any entries."""

    def make(folder: Path) -> Path:
        path = folder / f"bad{suffix}"
        how = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", how) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        return path

    return make


def saved(value: Any, suffix: str = ".pth", **how: Any) -> Make:
    """What `torch.save` makes of a value."""

    def make(folder: Path) -> Path:
        import torch

        path = folder / f"bad{suffix}"
        torch.save(value, path, **how)
        return path

    return make


def npy(array: Any = None, *, header: bytes = b"", data: bytes = b"") -> Make:
    """An .npy file: an array (object arrays are pickled), or any header text."""

    def make(folder: Path) -> Path:
        path = folder / "bad.npy"
        if array is not None:
            np.save(path, array, allow_pickle=True)
        else:
            path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
        return path

    return make


def tiff(tags: Mapping[int, tuple[int, int, int]], data: bytes = b"", repeat: int = 0) -> bytes:
    """A classic TIFF of one directory: tag to (type, count, value or offset); then `data`.

    The data begins at byte 8 + 2 + 12 tags + 4. `repeat` is the offset of the next directory.
    """
    entries = b"".join(
        struct.pack("<HHII", tag, kind, count, value)
        for tag, (kind, count, value) in sorted(tags.items())
    )
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return head + entries + struct.pack("<I", repeat) + data


def slide_tags(side: int = 64, tile: int = 64, **more: tuple[int, int, int]) -> dict[int, Any]:
    """Tags of a raw RGB slide of one tile whose data begins where `tiff` puts it."""
    count = 13 + sum(int(name[1:]) not in _SLIDE for name in more)
    begin = 8 + 2 + 12 * count + 4
    tags = {
        **{256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 2)},
        **{277: (3, 1, 3), 282: (3, 1, 40000), 283: (3, 1, 40000), 296: (3, 1, 3)},
        **{322: (4, 1, tile), 323: (4, 1, tile)},
        **{324: (4, 1, begin), 325: (4, 1, tile * tile * 3)},
    }
    return tags | {int(name[1:]): value for name, value in more.items()}


_SLIDE = {256, 257, 258, 259, 262, 277, 282, 283, 296, 322, 323, 324, 325}


def raw_slide(side: int = 64, tile: int = 64, **more: tuple[int, int, int]) -> Make:
    """A slide of one grey tile with some tags replaced: `t322=(type, count, value)`."""
    return raw(tiff(slide_tags(side, tile, **more), bytes(tile * tile * 3)), ".tif")


def pyramid(folder: Path, compression: str = "zlib", **options: Any) -> Path:
    """A good slide of 256 x 256 px in tiles of 64."""
    path = folder / "good.tif"
    rows = np.arange(256, dtype=np.uint8)
    pixels = np.stack([np.broadcast_to(rows, (256, 256))] * 3, -1).copy()
    tifffile.imwrite(
        path,
        pixels,
        **{
            "tile": (64, 64),
            "photometric": "rgb",
            "compression": compression,
            "resolution": (40000, 40000),
            "resolutionunit": "CENTIMETER",
            "metadata": None,
            **options,
        },
    )
    return path


def with_tiles(compression: str, data: bytes) -> Make:
    """A slide whose headers are good and whose every tile holds `data`."""

    def make(folder: Path) -> Path:
        path = pyramid(folder, compression)
        with tifffile.TiffFile(path) as file:
            tags = file.pages[0].tags
            offsets, counts = tags[324], tags[325]
            begin = path.stat().st_size
            with path.open("r+b") as out:
                out.seek(0, io.SEEK_END)
                out.write(data)
                for tag, value in ((offsets, begin), (counts, len(data))):
                    kind = "H" if int(tag.dtype) == 3 else "I"
                    out.seek(tag.valueoffset)
                    out.write(struct.pack(f"<{tag.count}{kind}", *[value] * tag.count))
        bad = folder / "bad.tif"
        path.rename(bad)
        return bad

    return make


BOMB = zlib.compress(bytes(64 << 20), 9)
"""64 MiB of zeros in 64 KiB."""
