"""Pixels of distinct patches in one file on a local disk, so that each is read once (Table IV).

The paper caches the patches of its ablation "on the local hard drive" (II-D2). A record is the
pixels of patch i, behind them their CRC-32: what was never written, or only half of it before the
machine went down, does not fit and is read from the slide again. The file is sparse and as large as
the number of distinct patches times their size; processes share it, and it may be deleted any time.
"""

from __future__ import annotations

import functools
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import typing as npt

from pathfm_cli import errors

log = logging.getLogger("pathfm.data")

_CRC_BYTES = 4


class Held:
    """Patches by number, (S, S, 3) uint8 each."""

    def __init__(self, path: Path, size_px: int) -> None:
        """Name the file; it is made when it is first needed.

        Args:
            path: of the file.
            size_px: side S of the patches.
        """
        self.path = path
        self._shape = (size_px, size_px, 3)
        self._bytes = size_px * size_px * 3
        self._full = False

    def get(self, numbers: Sequence[int]) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Pixels (B, S, S, 3) of the patches `numbers`, and the rows that are not held.

        Raises:
            errors.Unwritable: the file cannot be made.
        """
        pixels = np.empty((len(numbers), *self._shape), dtype=np.uint8)
        missing = []
        for row, number in enumerate(numbers):
            record = os.pread(self._file, self._bytes + _CRC_BYTES, number * self._record_bytes)
            block, checksum = record[: self._bytes], record[self._bytes :]
            if len(checksum) == _CRC_BYTES and checksum == _checksum(block):
                pixels[row] = np.frombuffer(block, dtype=np.uint8).reshape(self._shape)
            else:
                missing.append(row)
        return pixels, missing

    def put(self, numbers: Sequence[int], pixels: npt.NDArray[np.uint8]) -> None:
        """Keep pixels (B, S, S, 3); where the disk is full, say so once and keep no more."""
        for number, patch in zip(numbers, pixels, strict=True):
            if self._full:
                return
            block = patch.tobytes()
            try:
                os.pwrite(self._file, block + _checksum(block), number * self._record_bytes)
            except OSError as error:
                self._full = True
                log.warning("%s takes no more patches: %s", self.path, error.strerror)

    @property
    def _record_bytes(self) -> int:
        return self._bytes + _CRC_BYTES

    @functools.cached_property
    def _file(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise errors.Unwritable(self.path, error.strerror or str(error)) from error


def _checksum(block: bytes) -> bytes:
    return zlib.crc32(block).to_bytes(_CRC_BYTES, "little")
