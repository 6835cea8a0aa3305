"""What a long run will take, told beforehand from a short measurement on this machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pathfm_cli.data import cohort, draw
from pathfm_cli.wsi import batch, store

GAP_BYTES = 8 << 10
"""As `wsi.remote.GAP_BYTES`: what lies between two ranges of one request."""
LOOKED_UP = 256
"""Patches whose tiles are looked up to know the bytes of all."""
UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one patch, on average.

    Attributes:
        bytes: of the compressed tiles under it.
        requests: reads that bring them, neighbours joined.
    """

    bytes: float
    requests: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What was measured.

    Attributes:
        read_per_s: patches that are read and decoded in a second.
        compute_per_s: patches that the network takes in a second.
        remote: whether the slides lie behind a network.
        seconds: how long it was measured.
        one_after_the_other: whether reading and the network share the cores, so that their times
            add up; else the slower one decides.
    """

    read_per_s: float
    compute_per_s: float
    remote: bool
    seconds: float
    one_after_the_other: bool = False

    @property
    def limit(self) -> str:
        """What the run waits for: decode, network or compute."""
        if self.compute_per_s <= self.read_per_s:
            return "compute"
        return "network" if self.remote else "decode"

    def outlook(self, patches: int) -> dict[str, Any]:
        """Names and values for a person: the duration of so many patches, and what limits it."""
        times = (patches / self.read_per_s, patches / self.compute_per_s)
        seconds = sum(times) if self.one_after_the_other else max(times)
        return {
            "read_patches_per_s": round(self.read_per_s, 2),
            "compute_patches_per_s": round(self.compute_per_s, 2),
            "limit": self.limit,
            "duration_s": round(seconds),
            "duration": words(seconds),
            "measured_s": round(self.seconds, 1),
        }


def words(seconds: float) -> str:
    """A duration in its largest unit of at least 2, as `3.5 hours`."""
    for size, unit in UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def cost(opened: cohort.Cohort, patches: Iterable[draw.Patch]) -> Cost:
    """Look up the tiles of some patches in the tile table; reads no pixels."""
    total, requests, count = 0, 0, 0
    for patch in patches:
        asked = batch.Request(
            opened.slides[patch.slide], patch.x_px0, patch.y_px0, patch.mpp, patch.size_px
        )
        ranges = opened.reader.ranges(asked)
        total += sum(length for _, length in ranges)
        requests += len(store.merge(ranges, GAP_BYTES))
        count += 1
    return Cost(bytes=total / max(1, count), requests=requests / max(1, count))


def rate(
    pieces: Iterator[Any], seconds: float, use: Callable[[Any], Any] = lambda piece: None
) -> float:
    """Items a second that come from `pieces` and go through `use`; the first piece warms up.

    Args:
        pieces: an iterator over what has a length.
        seconds: how long to go on; at least one piece after the first is timed.
        use: called with each piece.
    """
    use(next(pieces))
    began, done = time.perf_counter(), 0
    for piece in pieces:
        use(piece)
        done += len(piece)
        if time.perf_counter() - began >= seconds:
            break
    return done / max(1e-9, time.perf_counter() - began)
