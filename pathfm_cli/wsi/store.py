"""Bytes of a file by range: thread-safe, with a bounded number of open files per process."""

from __future__ import annotations

import abc
import collections
import dataclasses
import os
import threading
from collections.abc import Sequence

from pathfm_cli import errors

MAX_OPEN_FILES = 64
"""Files kept open per process; the least recently used is closed when nobody reads it."""
MAX_READ_BYTES = 8 << 20
"""Ranges that are merged are read together up to this size."""
REMOTE_SCHEMES = ("s3", "gs", "az", "http", "https")

Range = tuple[int, int]


def is_remote(uri: str) -> bool:
    """Whether `uri` is a URL (of any scheme), not a path."""
    return "://" in uri


class Source(abc.ABC):
    """One file. Reads carry their own offset, so threads may share it.

    Attributes:
        uri: the path or URL it was opened by.
        size: bytes.
        etag: tells versions of the file apart; of a local file its modification time in ns.
    """

    uri: str
    size: int
    etag: str

    @staticmethod
    def open(uri: str) -> Source:
        """Open a file, apart from the shared ones of `open_source`.

        Raises:
            errors.SlideError: it does not exist, is no file, or may not be read.
        """
        if uri.endswith("/"):
            from pathfm_cli.wsi import series

            return series.Series.open(uri)
        if uri.endswith("#openslide"):
            from pathfm_cli.wsi import rendered

            return rendered.Rendered(uri)
        if not is_remote(uri):
            return Local.open(uri)
        from pathfm_cli.wsi import remote

        return remote.Remote.open(uri)

    @abc.abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            errors.SlideError: the range reaches past the end of the file, the file has changed, or
                it cannot be read.
        """

    @abc.abstractmethod
    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of every `(offset, length)`, in order; neighbours are read together.

        Raises:
            errors.SlideError: as `read`.
        """

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Be told what will be read next; nothing is done unless that saves requests."""
        return

    def check(self, offset: int, length: int) -> None:
        """Refuse a range outside the file.

        Raises:
            errors.SlideError: it is.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise errors.SlideError(
                f"{self.uri}: cut short or damaged: it ends at byte {self.size}, but bytes "
                f"{offset} to {offset + length} are needed"
            )


class Local(Source):
    """An open local file."""

    def __init__(self, uri: str, descriptor: int) -> None:
        self._descriptor = descriptor
        self.uri = uri
        status = os.fstat(descriptor)
        self.size = status.st_size
        self.etag = str(status.st_mtime_ns)

    @staticmethod
    def open(uri: str) -> Local:
        """Open a local file; see `Source.open`."""
        if not os.path.isfile(uri):
            what = "not a file" if os.path.exists(uri) else "does not exist"
            raise errors.SlideError(f"{uri}: {what}")
        try:
            return Local(uri, os.open(uri, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise errors.SlideError(f"{uri}: cannot be opened ({error.strerror})") from error

    def __del__(self) -> None:
        # The cache only drops its reference: a thread in the middle of a read keeps the file open.
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; see `Source.read`."""
        self.check(offset, length)
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

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of every range, in order; adjacent ones in one read."""
        runs = merge(ranges)
        return scatter(ranges, runs, [self.read(run.offset, run.length) for run in runs])


@dataclasses.dataclass(slots=True)
class Run:
    """One read that covers the ranges with the numbers `members`."""

    offset: int
    length: int
    members: list[int]


def merge(ranges: Sequence[Range], gap: int = 0) -> list[Run]:
    """Join neighbours to reads of at most `MAX_READ_BYTES` (or one range, if that is longer).

    Args:
        ranges: (offset, length) in any order; they may overlap.
        gap: bytes between two ranges that are read along rather than left out.
    """
    runs: list[Run] = []
    for number in sorted(range(len(ranges)), key=ranges.__getitem__):
        offset, length = ranges[number]
        if runs:
            last = runs[-1]
            whole = max(last.length, offset + length - last.offset)
            if offset <= last.offset + last.length + gap and whole <= MAX_READ_BYTES:
                last.length = whole
                last.members.append(number)
                continue
        runs.append(Run(offset, length, [number]))
    return runs


def scatter(ranges: Sequence[Range], runs: Sequence[Run], blocks: Sequence[bytes]) -> list[bytes]:
    """The bytes of each range, cut from those of the runs."""
    parts: list[bytes] = [b""] * len(ranges)
    for run, block in zip(runs, blocks, strict=True):
        for number in run.members:
            offset, length = ranges[number]
            begin = offset - run.offset
            parts[number] = block[begin : begin + length]
    return parts


_open: collections.OrderedDict[str, Source] = collections.OrderedDict()
_lock = threading.Lock()


def open_source(uri: str) -> Source:
    """Return the open file `uri`, opening it if needed.

    Raises:
        errors.SlideError: it does not exist, is no file, or may not be read.
    """
    return _kept(uri) or _keep(uri, Source.open(uri))


def open_version(uri: str, size: int, etag: str) -> Source:
    """Return the open file `uri`, which must be of this size and etag.

    Of a remote file nothing is asked here: every read checks the etag of its answer.

    Raises:
        errors.SlideError: it is gone, cannot be opened, or has changed.
    """
    for _ in range(2):
        source = _kept(uri) or _keep(uri, _version(uri, size, etag))
        if (source.size, source.etag) == (size, etag):
            return source
        # The file kept open may be an older one than the index saw: look once more.
        forget(uri)
    raise changed(uri)


def changed(uri: str) -> errors.SlideError:
    """The error of a file that is not the one that was indexed."""
    return errors.SlideError(f"{uri} has changed since it was indexed", "run `pathfm index` again")


def forget(uri: str) -> None:
    """Drop `uri` from the open files, so that the next read sees the file as it is then."""
    with _lock:
        _open.pop(uri, None)


def _version(uri: str, size: int, etag: str) -> Source:
    if not is_remote(uri) or uri.endswith("/"):
        return Source.open(uri)
    from pathfm_cli.wsi import remote

    return remote.Remote(uri, size, etag)


def _kept(uri: str) -> Source | None:
    with _lock:
        source = _open.get(uri)
        if source is not None:
            _open.move_to_end(uri)
        return source


def _keep(uri: str, source: Source) -> Source:
    with _lock:
        _open[uri] = source
        while len(_open) > MAX_OPEN_FILES:
            _open.popitem(last=False)
    return source
