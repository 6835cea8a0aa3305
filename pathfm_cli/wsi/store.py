"""Bytes of a file by range: thread-safe, with a bounded number of open files per process."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Sequence

from pathfm_cli import errors

MAX_OPEN_FILES = 64
"""Files kept open per process; the least recently used is closed when nobody reads it."""


class Source:
    """One open file. Reads carry their own offset, so threads may share it.

    Attributes:
        uri: the path it was opened by.
        size: bytes.
        etag: modification time in ns, as text; tells versions of the file apart.
    """

    def __init__(self, uri: str, descriptor: int) -> None:
        self._descriptor = descriptor
        self.uri = uri
        status = os.fstat(descriptor)
        self.size = status.st_size
        self.etag = str(status.st_mtime_ns)

    @classmethod
    def open(cls, uri: str) -> Source:
        """Open a local file, apart from the shared ones of `open_source`.

        Raises:
            errors.SlideError: it does not exist, is no file, or may not be read.
        """
        if "://" in uri:
            raise errors.SlideError(f"{uri}: not a local file; only local files can be read")
        if not os.path.isfile(uri):
            what = "not a file" if os.path.exists(uri) else "does not exist"
            raise errors.SlideError(f"{uri}: {what}")
        try:
            return cls(uri, os.open(uri, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise errors.SlideError(f"{uri}: cannot be opened ({error.strerror})") from error

    def __del__(self) -> None:
        # The cache only drops its reference: a thread in the middle of a read keeps the file open.
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            errors.SlideError: the range reaches past the end of the file, or the disk fails.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise errors.SlideError(
                f"{self.uri}: cut short or damaged: it ends at byte {self.size}, but bytes "
                f"{offset} to {offset + length} are needed"
            )
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length and (more := self._more(offset + len(data), length, data)):
                data += more
        except OSError as error:
            raise errors.SlideError(f"{self.uri}: cannot be read ({error.strerror})") from error
        if len(data) < length:
            raise errors.SlideError(f"{self.uri}: became shorter while it was read")
        return data

    def _more(self, offset: int, length: int, data: bytes) -> bytes:
        return os.pread(self._descriptor, length - len(data), offset)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of every `(offset, length)`, in order."""
        return [self.read(offset, length) for offset, length in ranges]


_open: collections.OrderedDict[str, Source] = collections.OrderedDict()
_lock = threading.Lock()


def open_source(uri: str) -> Source:
    """Return the open file `uri`, opening it if needed.

    Raises:
        errors.SlideError: it does not exist, is no file, or may not be read.
    """
    with _lock:
        source = _open.get(uri)
        if source is not None:
            _open.move_to_end(uri)
            return source
    source = Source.open(uri)
    with _lock:
        _open[uri] = source
        while len(_open) > MAX_OPEN_FILES:
            _open.popitem(last=False)
    return source


def forget(uri: str) -> None:
    """Drop `uri` from the open files, so that the next read sees the file as it is then."""
    with _lock:
        _open.pop(uri, None)
