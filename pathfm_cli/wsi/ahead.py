"""Few requests for many small reads: what lies around a read is kept for the next ones.

For headers only. TIFF directories and the small values they point to lie close together, but where
they are is known only step by step, and over a network each step costs a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence

from pathfm_cli.wsi import store

SMALL_BYTES = 16 << 10
"""Reads up to this size bring their surroundings along; longer ones come as they are."""
BEFORE_BYTES = 8 << 10
AFTER_BYTES = 40 << 10
MAX_PREFETCH_BYTES = 256 << 20
"""What is asked for beyond this is read when it is needed."""


class Ahead(store.Source):
    """A file whose header is read by one thread; keeps all that it reads, so drop it soon."""

    def __init__(self, source: store.Source) -> None:
        self._source = source
        self.uri, self.size, self.etag = source.uri, source.size, source.etag
        self._blocks: list[tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; see `Source.read`."""
        self.check(offset, length)
        found = self._find(offset, length)
        if found is not None:
            return found
        if length > SMALL_BYTES:
            return self._source.read(offset, length)
        begin = max(0, offset - BEFORE_BYTES)
        end = min(self.size, offset + AFTER_BYTES)
        self._blocks.append((begin, self._source.read(begin, end - begin)))
        return self._blocks[-1][1][offset - begin : offset - begin + length]

    def read_many(self, ranges: Sequence[store.Range]) -> list[bytes]:
        """Return the bytes of every range, in order."""
        self.prefetch(ranges)
        return [self.read(offset, length) for offset, length in ranges]

    def prefetch(self, ranges: Sequence[store.Range]) -> None:
        """Fetch what is not here yet, all at once."""
        wanted, total = [], 0
        for offset, length in ranges:
            total += length
            if total <= MAX_PREFETCH_BYTES and self._find(offset, length) is None:
                self.check(offset, length)
                wanted.append((offset, length))
        blocks = self._source.read_many(wanted)
        self._blocks += zip((offset for offset, _ in wanted), blocks, strict=True)

    def _find(self, offset: int, length: int) -> bytes | None:
        for begin, block in reversed(self._blocks):
            if begin <= offset and offset + length <= begin + len(block):
                return block[offset - begin : offset - begin + length]
        return None
