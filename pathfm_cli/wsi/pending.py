"""Ranges of remote files that are on their way, because they will be read soon.

Whoever knows what a batch needs asks for all of it at once; the threads that decode find it here.
What nobody fetches in the end is dropped, oldest first, beyond a number of bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from concurrent import futures

MAX_BYTES = 256 << 20

Key = tuple[str, str, int, int]
"""uri, etag, offset, length."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A range that lies in what a future will bring, `begin` bytes after its start."""

    whole: futures.Future[memoryview]
    begin: int
    length: int

    def result(self) -> bytes:
        """The bytes, once they are here; raises what the fetch raised."""
        return bytes(self.whole.result()[self.begin : self.begin + self.length])


class Pending:
    """Parts by key, each kept until everyone who asked for it has taken it; thread-safe."""

    def __init__(self, most_bytes: int = MAX_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._parts: collections.OrderedDict[Key, tuple[Part, int]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def claim(self, key: Key) -> bool:
        """Ask for a part that is kept already; whether it is."""
        with self._lock:
            if key not in self._parts:
                return False
            part, claims = self._parts[key]
            self._parts[key] = part, claims + 1
            return True

    def put(self, key: Key, part: Part) -> None:
        """Keep a part until it is taken."""
        with self._lock:
            claims = 0
            if key in self._parts:
                _, claims = self._parts.pop(key)
                self._bytes -= part.length
            self._parts[key] = part, claims + 1
            self._bytes += part.length
            while self._bytes > self._most:
                _, (dropped, _) = self._parts.popitem(last=False)
                self._bytes -= dropped.length

    def take(self, key: Key) -> Part | None:
        """The part of this key, or None if nobody asked for it."""
        with self._lock:
            if key not in self._parts:
                return None
            part, claims = self._parts[key]
            if claims > 1:
                self._parts[key] = part, claims - 1
            else:
                del self._parts[key]
                self._bytes -= part.length
            return part

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._parts.clear()
            self._bytes = 0
