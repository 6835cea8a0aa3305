"""Patches of a batch, grouped by the tiles they share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence

from pathfm_cli import errors
from pathfm_cli.wsi import regions, resample, slide, tiles

MAX_SHARED_PIXELS = 1 << 22
"""A patch that needs more pixels of its level than this shares none of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A square patch; the fields are the arguments of `pyramid.Reader.read_patch`."""

    slide: slide.Slide
    x_px0: float
    y_px0: float
    mpp: float
    size_px: int


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A patch on its way: its number in the batch, its level, and how it is cut from it."""

    number: int
    slide: slide.Slide
    level: int
    cut: resample.Cut

    def window(self, out: resample.Pixels | None = None) -> regions.Window:
        """What is read for it, and where it goes."""
        cut = self.cut
        return regions.Window(cut.left, cut.top, cut.width, cut.height, out)


def read(table: tiles.TileTable, items: Sequence[Item], pixels: resample.Pixels) -> None:
    """Read patches of one level at one scale into their places in `pixels`, (B, S, S, 3) uint8.

    Raises:
        errors.SlideError: as `regions.read`.
    """
    windows = [item.window(pixels[item.number] if item.cut.copies else None) for item in items]
    first = items[0]
    found = regions.read(table, first.slide, first.level, windows, first.cut.scale)
    for item, region in zip(items, found, strict=True):
        if not item.cut.copies:
            pixels[item.number] = item.cut.finish(region)


def announce(table: tiles.TileTable, groups: Iterable[Sequence[Item]]) -> None:
    """Let the tiles of remote slides come for all groups at once, before the first is read."""
    for items in groups:
        first = items[0]
        # What is wrong with a slide is told when it is read.
        with contextlib.suppress(errors.SlideError):
            windows = [item.window() for item in items]
            regions.announce(table, first.slide, first.level, windows, first.cut.scale)


def jobs(items: Iterable[Item]) -> list[list[Item]]:
    """Group patches so that each tile is needed by one group only."""
    levels: dict[tuple[str, str, int, int], list[Item]] = {}
    alone = []
    for item in items:
        if item.cut.width * item.cut.height > MAX_SHARED_PIXELS:
            alone.append([item])
        else:
            key = (item.slide.slide, item.slide.uri, item.level, item.cut.scale)
            levels.setdefault(key, []).append(item)
    return alone + [job for members in levels.values() for job in _sharing(members)]


def _sharing(items: Sequence[Item]) -> list[list[Item]]:
    """Patches of one level, those that share tiles (also by way of others) together."""
    touched = [
        [*regions.touched(item.slide.levels[item.level], item.window(), item.cut.scale)]
        for item in items
    ]
    if len(set().union(*touched)) == sum(map(len, touched)):
        return [[item] for item in items]
    leader = list(range(len(items)))

    def lead(number: int) -> int:
        while leader[number] != number:
            leader[number] = number = leader[leader[number]]
        return number

    owner: dict[int, int] = {}
    for number, numbers in enumerate(touched):
        for tile in numbers:
            leader[lead(owner.setdefault(tile, number))] = lead(number)
    groups: dict[int, list[Item]] = {}
    for number, item in enumerate(items):
        groups.setdefault(lead(number), []).append(item)
    return list(groups.values())
