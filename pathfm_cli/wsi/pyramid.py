"""Slides as values, and their pixels at any position and resolution.

Coordinates are (x, y) of the left upper corner; pixel arrays are (height, width, 3) uint8 RGB.
Outside the slide and where a tile is missing, pixels are white.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from pathfm_cli import errors
from pathfm_cli.wsi import batch, regions, resample, slide, tiles

Level = slide.Level
Slide = slide.Slide
Policy = slide.Policy
Request = batch.Request
grid_scale = slide.grid_scale
LEVEL_TOLERANCE = slide.LEVEL_TOLERANCE

MAX_BAND_PIXELS = 1 << 25
"""Pixels of a level held at once; what needs more is read in bands."""
MAX_THUMBNAIL_PIXELS = 1 << 27
"""Largest thumbnail; a damaged row can claim any size."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Reader:
    """Reads pixels of slides; thread-safe, and picklable because it opens lazily."""

    def __init__(
        self, tile_table: str | Path, *, policy: Policy = "finer", idct: bool = True
    ) -> None:
        """Name the tile table; it is opened at first use.

        Args:
            tile_table: the file beside a `slides` artifact.
            policy: which level is read for an mpp; see `Slide.level_for`.
            idct: whether JPEG tiles may be decoded at 1/2, 1/4 or 1/8; see `resample`.
        """
        self._path = Path(tile_table)
        self._policy = policy
        self._idct = idct
        self._table: tiles.TileTable | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "policy": self._policy, "idct": self._idct}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._path, self._policy, self._idct = state["path"], state["policy"], state["idct"]
        self._table = None
        self._lock = threading.Lock()

    @property
    def table(self) -> tiles.TileTable:
        """The tile table, opened at first use.

        Raises:
            errors.InputError: it is missing or damaged.
        """
        if self._table is None:
            with self._lock:
                self._table = self._table or tiles.TileTable.open(self._path)
        return self._table

    def read_region(
        self, slide: Slide, x_px: int, y_px: int, level: int, width_px: int, height_px: int
    ) -> Pixels:
        """Read pixels of one level, as they are.

        Args:
            slide: the slide.
            x_px: left edge in pixels of the level; may lie outside.
            y_px: top edge in pixels of the level.
            level: number of the level.
            width_px: width in pixels of the level.
            height_px: height in pixels of the level.

        Returns:
            (height_px, width_px, 3) uint8.

        Raises:
            errors.SlideError: the file changed, cannot be read, or a tile is corrupt.
        """
        window = regions.Window(x_px, y_px, width_px, height_px)
        return regions.read(self.table, slide, level, [window])[0]

    def read_patch(
        self, slide: Slide, x_px0: float, y_px0: float, mpp: float, size_px: int
    ) -> Pixels:
        """Read a square patch.

        Args:
            slide: the slide.
            x_px0: left edge, level-0 pixels.
            y_px0: top edge, level-0 pixels.
            mpp: resolution of the result, um/px.
            size_px: side of the result, px.

        Returns:
            (size_px, size_px, 3) uint8.

        Raises:
            errors.SlideError: as `read_region`.
        """
        level, box = self._place(Request(slide, x_px0, y_px0, mpp, size_px))
        return self._resample(slide, level, box, size_px, size_px)

    def read_patches(
        self,
        requests: Sequence[Request],
        pool: futures.Executor | None = None,
        *,
        announced: bool = False,
    ) -> tuple[Pixels, dict[int, errors.SlideError]]:
        """Read patches of one size, of any slides.

        Patches that share tiles are read together: each tile is fetched and decoded once, and
        adjacent ones in one read. Which patches stand beside it changes no pixel of a patch.

        Args:
            requests: B patches.
            pool: threads that read and decode, one per core; None: this thread. Tiles of remote
                slides are asked for all at once before the first is decoded.
            announced: whether `announce` has asked for them already.

        Returns:
            (B, S, S, 3) uint8, and for each number of a patch that cannot be read its error; such
            a patch is white.

        Raises:
            ValueError: the sizes differ.
            errors.InputError: the tile table is missing or damaged.
        """
        sizes = {request.size_px for request in requests}
        if len(sizes) > 1:
            raise ValueError(f"patches of one size are needed, not {sorted(sizes)}")
        (size_px,) = sizes or (0,)
        pixels = np.empty((len(requests), size_px, size_px, 3), np.uint8)
        failures: dict[int, errors.SlideError] = {}

        _ = self.table
        jobs = batch.jobs(self._item(number, request) for number, request in enumerate(requests))
        if not announced:
            batch.announce(self.table, jobs)
        # No closure that calls itself: the cycle would keep every batch until the next collection.
        work = functools.partial(self._try_job, requests, pixels=pixels, failures=failures)
        for _ in pool.map(work, jobs) if pool else map(work, jobs):
            pass
        return pixels, failures

    def announce(self, requests: Sequence[Request]) -> None:
        """Let the tiles of remote patches come that `read_patches` will be asked for next.

        Each announced patch should be read, and once: its tiles wait in memory until then.

        Raises:
            errors.InputError: the tile table is missing or damaged.
        """
        items = (self._item(number, request) for number, request in enumerate(requests))
        batch.announce(self.table, batch.jobs(items))

    def read_thumbnail(self, slide: Slide, mpp: float) -> Pixels:
        """Read the whole slide at about `mpp`, in bounded memory.

        Returns:
            (H, W, 3) uint8 with W = round(width_px0 * slide.mpp / mpp), at least 1, H alike; its
            true scale is width_px0 / W and height_px0 / H level-0 pixels per pixel.

        Raises:
            errors.SlideError: as `read_region`, or the result would exceed 134 megapixels.
        """
        number = slide.level_for(mpp, self._policy)
        plane = slide.levels[number]
        width = max(1, round(slide.width_px0 * slide.mpp / mpp))
        height = max(1, round(slide.height_px0 * slide.mpp / mpp))
        if width * height > MAX_THUMBNAIL_PIXELS:
            raise errors.SlideError(
                f"{slide.slide}: the whole slide at {mpp:g} um/px has {width}x{height} px, "
                "which is too large a picture",
                "a coarser mpp",
            )
        box = (0.0, 0.0, slide.width_px0 / plane.scale[0], slide.height_px0 / plane.scale[1])
        return self._resample(slide, number, box, width, height)

    def ranges(self, request: Request) -> list[tuple[int, int]]:
        """(offset, bytes) of every tile that lies under a patch; reads nothing."""
        number, (left, top, right, bottom) = self._place(request)
        level = request.slide.levels[number]
        x, y = math.floor(left), math.floor(top)
        window = regions.Window(x, y, math.ceil(right) - x, math.ceil(bottom) - y)
        numbers = np.fromiter(regions.touched(level, window, 1), np.int64)
        offsets, counts = self.table.ranges(level.place, numbers)
        return [(int(o), int(c)) for o, c in zip(offsets, counts, strict=True) if c]

    def _place(self, request: Request) -> tuple[int, resample.Box]:
        """The level to read, and the patch in its pixels."""
        origin = request.slide
        number = origin.level_for(request.mpp, self._policy)
        scale_x, scale_y = origin.levels[number].scale
        side_px0 = request.size_px * request.mpp / origin.mpp
        return number, (
            request.x_px0 / scale_x,
            request.y_px0 / scale_y,
            (request.x_px0 + side_px0) / scale_x,
            (request.y_px0 + side_px0) / scale_y,
        )

    def _resample(
        self, slide: Slide, number: int, box: resample.Box, width_px: int, height_px: int
    ) -> Pixels:
        """Bring `box` (pixels of the level) to a size, in bands of rows where it is large."""
        step = (box[3] - box[1]) / height_px
        rows = max(1, int(MAX_BAND_PIXELS / (box[2] - box[0]) / step))
        parts = []
        for begin in range(0, height_px, rows):
            end = min(begin + rows, height_px)
            band = (box[0], box[1] + begin * step, box[2], box[1] + end * step)
            cut = resample.cut(slide.levels[number], band, width_px, end - begin, idct=self._idct)
            parts.append(_read(self.table, slide, number, cut))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _try_job(
        self,
        requests: Sequence[Request],
        job: Sequence[batch.Item],
        pixels: Pixels,
        failures: dict[int, errors.SlideError],
    ) -> None:
        """Read a group; only the patches that show what is damaged fail."""
        try:
            self._read_job(requests, job, pixels)
        except errors.SlideError as error:
            if len(job) > 1:
                for item in job:
                    self._try_job(requests, [item], pixels, failures)
                return
            pixels[job[0].number] = regions.WHITE
            # Its traceback would keep the pixels.
            failures[job[0].number] = errors.SlideError(str(error), error.hint)

    def _read_job(
        self, requests: Sequence[Request], job: Sequence[batch.Item], pixels: Pixels
    ) -> None:
        cut, request = job[0].cut, requests[job[0].number]
        if cut.width * cut.height > MAX_BAND_PIXELS:
            place = (request.x_px0, request.y_px0, request.mpp, request.size_px)
            pixels[job[0].number] = self.read_patch(request.slide, *place)
        else:
            batch.read(self.table, job, pixels)

    def _item(self, number: int, request: Request) -> batch.Item:
        level, box = self._place(request)
        size = (request.size_px, request.size_px)
        cut = resample.cut(request.slide.levels[level], box, *size, idct=self._idct)
        return batch.Item(number, request.slide, level, cut)


def _read(table: tiles.TileTable, origin: Slide, number: int, cut: resample.Cut) -> Pixels:
    window = regions.Window(cut.left, cut.top, cut.width, cut.height)
    return cut.finish(regions.read(table, origin, number, [window], cut.scale)[0])
