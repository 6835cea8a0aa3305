"""PatchCamelyon: lymph node patches with or without tumour, in HDF5 (paper IV-A)."""

from __future__ import annotations

import collections
import importlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import errors
from pathfm_cli.tasks import source
from pathfm_cli.tasks.datasets import base

SPLITS = {"train": "train", "val": "valid", "test": "test"}
"""Our name of a split to the one in the files' names."""
SIDE_PX = 96
BLOCK = 256
"""Rows read at once: 7 MB."""
BLOCKS_KEPT = 4
MAX_ROWS = 1 << 20
_FILES = "https://zenodo.org/records/2546921/files"
_MD5 = {
    "train_x": "1571f514728f59376b705fc836ff4b63",
    "train_y": "35c2d7259d906cfc8143347bb8e05be7",
    "valid_x": "d5b63470df7cfa627aeec8b9dc0c066e",
    "valid_y": "2b85f58b927af9964a4c15b8f7e8f179",
    "test_x": "d8c2d60d490dbd479f8199bdfa0cf6ec",
    "test_y": "60a7035772fbdb7f34eb86d4420cf66a",
}
"""Of the .h5.gz files, as their authors list them."""
_UNPACKED_MD5 = {
    "train_x": "01844da899645b4d6f84946d417ba453",
    "train_y": "0781386bf6c2fb62d58ff18891466aca",
    "valid_x": "81cf9680f1724c40673f10dc88e909b1",
    "valid_y": "94d8aacc249253159ce2a2e78a86e658",
    "test_x": "2614b2e6717d6356be141d9d6dbfcb7e",
    "test_y": "11ed647efe9fe457a4eb45df1dba19ba",
}
"""Of the .h5 files inside, as kaiko-eva checks them."""


def file_name(split: str, key: str) -> str:
    """Name of the file with the images (`x`) or labels (`y`) of a split."""
    return f"camelyonpatch_level_2_split_{SPLITS[split]}_{key}.h5"


def _resource(split: str, key: str) -> base.Resource:
    name = file_name(split, key)
    return base.Resource(
        url=f"{_FILES}/{name}.gz",
        makes=name,
        md5=_MD5[f"{SPLITS[split]}_{key}"],
        unpacked_md5=_UNPACKED_MD5[f"{SPLITS[split]}_{key}"],
        max_unpacked_bytes=8 << 30,
    )


class Pcam(base.Dataset):
    """Two HDF5 files a split: `x` (N, 96, 96, 3) uint8 and `y` (N, 1, 1, 1) uint8."""

    facts = base.Facts(
        name="pcam",
        title="lymph node metastases, 96 px",
        classes=("no_tumor", "tumor"),
        counts={"train": 262_144, "val": 32_768, "test": 32_768},
        mpp=0.97,
        licence="CC0 1.0",
        licence_url="https://creativecommons.org/publicdomain/zero/1.0/legalcode",
        origin="zenodo record 2546921",
        layout=tuple(file_name(split, key) for split in SPLITS for key in "xy"),
        instructions="gunzip the six .h5.gz files into the data folder",
        resources=tuple(_resource(split, key) for split in SPLITS for key in "xy"),
    )

    def scan(self, root: Path) -> base.Scan:
        """As `base.Dataset.scan`."""
        stacks, tables, versions = [], [], []
        for split in SPLITS:
            paths = [root / file_name(split, key) for key in "xy"]
            for path in paths:
                if not path.is_file():
                    raise base.missing(self.facts, root, path)
                status = os.stat(path)
                versions.append((status.st_size, status.st_mtime_ns))
            labels = read_labels(paths[1])
            stacks.append(Stack(paths[0]))
            if len(labels) != stacks[-1].rows:
                raise errors.InputError(
                    f"{paths[0]} has {stacks[-1].rows} images, {paths[1].name} {len(labels)} "
                    "labels.",
                    self.facts.hint(root),
                )
            tables.append(_table(split, labels))
        rows = pl.concat(tables)
        ends = np.cumsum([stack.rows for stack in stacks])

        def read(row: int) -> source.Image:
            which = int(np.searchsorted(ends, row, side="right"))
            return stacks[which].read(row - int(ends[which] - stacks[which].rows))

        return base.Scan(rows=rows, read=read, version=repr(versions))


class Stack:
    """The images of one file, read a block of rows at a time; safe for threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[int, source.Image] = collections.OrderedDict()
        self._data = _dataset(path, "x", (SIDE_PX, SIDE_PX, 3))
        self.rows = int(self._data.shape[0])

    def read(self, row: int) -> source.Image:
        """Pixels of an image, (96, 96, 3) uint8.

        Raises:
            errors.SlideError: the file is damaged there.
        """
        number, offset = divmod(row, BLOCK)
        with self._lock:
            if number not in self._blocks:
                self._blocks[number] = self._block(number)
                while len(self._blocks) > BLOCKS_KEPT:
                    self._blocks.popitem(last=False)
            block = self._blocks[number]
        image: source.Image = block[offset]
        return image

    def _block(self, number: int) -> source.Image:
        try:
            found: source.Image = self._data[number * BLOCK : (number + 1) * BLOCK]
        except (OSError, RuntimeError, ValueError) as error:
            raise errors.SlideError(f"{self._path.name} cannot be read: {error}") from error
        return found


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """The labels of a `y` file, (N,) uint8.

    Raises:
        errors.InputError: the file is damaged, or a label is neither 0 nor 1.
    """
    try:
        labels: npt.NDArray[np.uint8] = np.asarray(_dataset(path, "y", (1, 1, 1))[...]).reshape(-1)
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.InputError(f"{path} is damaged: {error}.", "fetch it again") from error
    if labels.max(initial=0) > 1:
        raise errors.InputError(f"{path} holds the label {labels.max()}; 0 and 1 are known.")
    return labels


def _dataset(path: Path, key: str, shape: tuple[int, ...]) -> Any:
    """Open a data set that lies wholly in its file and has the published type and shape."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise errors.MissingExtra("PCam", "h5py", "tasks") from error
    try:
        found = h5py.File(path, "r").get(key)
    except OSError as error:
        raise errors.InputError(
            f"{path} is damaged or no HDF5 file.", f"delete it, and fetch it again: {path.name}.gz"
        ) from error
    if not isinstance(found, h5py.Dataset) or found.file.filename != os.fspath(path):
        raise errors.InputError(f"{path} has no data set {key!r} of its own.", "fetch it again")
    if found.external or found.is_virtual:
        raise errors.InputError(f"{path} points to other files; pathfm does not follow.")
    rows = found.shape[0] if found.ndim else 0
    if found.shape[1:] != shape or found.dtype != np.uint8 or not 0 < rows <= MAX_ROWS:
        raise errors.InputError(
            f"{path} holds {key!r} of {found.dtype} {found.shape}, not uint8 (N, {shape}).",
            "fetch it again",
        )
    return found


def _table(split: str, labels: npt.NDArray[np.uint8]) -> pl.DataFrame:
    names = np.array(Pcam.facts.classes)[labels]
    return pl.DataFrame({"row": np.arange(len(labels)), "label": names}).select(
        pl.format(f"{split}/{{}}", "row").alias("id"), "label", pl.lit(split).alias("split")
    )
