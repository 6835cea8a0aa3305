"""A folder of DICOM files as one source: one after the other, in the order of their names.

A DICOM slide is one file per level, in a folder of its own. Its uri ends in `/`; offsets count
through all files, so that the tile table needs to know of no folder. Size and etag are those of all
files together: one that is added, removed or replaced makes another version.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Sequence

from pathfm_cli import errors
from pathfm_cli.wsi import store

SUFFIX = ".dcm"
MAX_FILES = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One file, and where it begins in the whole."""

    uri: str
    size: int
    etag: str
    begin: int

    def open(self) -> store.Source:
        """The open file, shared and bounded as all are."""
        return store.open_version(self.uri, self.size, self.etag)


def is_series(uri: str) -> bool:
    """Whether `uri` stands for the files of a folder."""
    return uri.endswith("/")


class Series(store.Source):
    """The DICOM files of one folder."""

    def __init__(self, uri: str, files: Sequence[tuple[str, int, str]]) -> None:
        """Join files.

        Args:
            uri: the folder, with a `/` at the end.
            files: (uri, size, etag) of each.
        """
        ordered = sorted(files)
        begins = itertools.accumulate((size for _, size, _ in ordered), initial=0)
        self.parts = [Part(*file, begin) for file, begin in zip(ordered, begins, strict=False)]
        self.uri = uri
        self.size = sum(part.size for part in self.parts)
        versions = [(os.path.basename(part.uri), part.size, part.etag) for part in self.parts]
        self.etag = hashlib.sha256(repr(versions).encode()).hexdigest()[:32]
        self._begins = [part.begin for part in self.parts]

    @staticmethod
    def open(uri: str) -> Series:
        """List a folder; see `Source.open`."""
        files = _listed(uri) if store.is_remote(uri) else _local(uri)
        if not files:
            raise errors.SlideError(f"{uri}: holds no {SUFFIX} file")
        if len(files) > MAX_FILES:
            raise errors.SlideError(f"{uri}: holds more than {MAX_FILES} {SUFFIX} files")
        return Series(uri, files)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; see `Source.read`."""
        self.check(offset, length)
        pieces = []
        while length:
            part = self._part(offset)
            count = min(length, part.begin + part.size - offset)
            pieces.append(part.open().read(offset - part.begin, count))
            offset, length = offset + count, length - count
        return b"".join(pieces)

    def read_many(self, ranges: Sequence[store.Range]) -> list[bytes]:
        """Return the bytes of every range, in order; each lies in one file."""
        found: list[bytes] = [b""] * len(ranges)
        for part, numbers in self._by_part(ranges).items():
            wanted = [(ranges[number][0] - part.begin, ranges[number][1]) for number in numbers]
            for number, data in zip(numbers, part.open().read_many(wanted), strict=True):
                found[number] = data
        return found

    def prefetch(self, ranges: Sequence[store.Range]) -> None:
        """Be told what will be read next; each range lies in one file."""
        for part, numbers in self._by_part(ranges).items():
            part.open().prefetch([(ranges[n][0] - part.begin, ranges[n][1]) for n in numbers])

    def _by_part(self, ranges: Sequence[store.Range]) -> dict[Part, list[int]]:
        groups: dict[Part, list[int]] = {}
        for number, (offset, length) in enumerate(ranges):
            self.check(offset, length)
            groups.setdefault(self._part(offset), []).append(number)
        return groups

    def _part(self, offset: int) -> Part:
        return self.parts[max(0, bisect.bisect_right(self._begins, offset) - 1)]


def _local(uri: str) -> list[tuple[str, int, str]]:
    try:
        with os.scandir(uri) as entries:
            return [
                (entry.path, entry.stat().st_size, str(entry.stat().st_mtime_ns))
                for entry in entries
                if entry.name.lower().endswith(SUFFIX) and entry.is_file()
            ]
    except FileNotFoundError as error:
        raise errors.SlideError(f"{uri}: does not exist") from error
    except OSError as error:
        raise errors.SlideError(f"{uri}: cannot be listed ({error.strerror})") from error


def _listed(uri: str) -> list[tuple[str, int, str]]:
    from pathfm_cli.wsi import remote

    return [
        (entry.uri, entry.size, entry.etag)
        for entry in remote.listing(uri)
        if entry.uri.lower().endswith(SUFFIX) and "/" not in entry.uri[len(uri) :]
    ]
