"""Decoding a random patch's tiles: the whole tiles, or only the rectangles that the patch shows.

python benchmarks/decode.py [--quick] [--json] [--slide FILE]

The tiles of level 0 are in memory before the clock starts; nothing is read, planned or resized.
A patch of 256 px at a random place shows parts of about four tiles. `whole` decodes each of them
with simplejpeg and copies the part, `part` uses the extension (`pathfm_cli.wsi.roi`); both in
patches per second, by all threads together. `half` is the same for 512 px at scale 1/2. `ratio` is
CPU time of whole over part, which a busy machine distorts less than the rates. Medians of
alternating rounds. Before, 50 patches of each are compared: the pixels must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from unittest import mock

import numpy as np

from pathfm_cli.wsi import roi, store, tiff, vendor

SLIDE = Path(__file__).parents[2] / "shared" / "data" / "slides" / "BS27_duodenum_HE_40x_ycc422.svs"
PATCH_PX = 256
ROUNDS = 5


class Level:
    """Level 0 of a slide with the bytes of its tiles in memory."""

    def __init__(self, path: Path) -> None:
        source = store.Source.open(str(path))
        self.plane = vendor.describe(source, path.name).planes[0]
        if not self.plane.codec.startswith("jpeg"):
            raise SystemExit(f"{path} holds {self.plane.codec} tiles, not JPEG")
        offsets, counts = (
            self.plane.directory.array(tag).tolist()
            for tag in (tiff.TILE_OFFSETS, tiff.TILE_BYTE_COUNTS)
        )
        self.tiles = source.read_many(list(zip(offsets, counts, strict=True)))

    def patch(self, x: int, y: int, scale: int) -> np.ndarray:
        """Decode a patch whose left upper corner lies at (x, y), in scaled pixels."""
        plane = self.plane
        width, height = plane.tile_width_px, plane.tile_height_px
        columns = -(-plane.width_px // width)
        canvas = np.full((PATCH_PX, PATCH_PX, 3), 255, np.uint8)
        for row, top, y1, h in spans(y, height // scale):
            for column, left, x1, w in spans(x, width // scale):
                data = self.tiles[row * columns + column]
                out = canvas[top : top + h, left : left + w]
                if data:
                    kind = (plane.codec, plane.prefix, width, height)
                    roi.decode_region(data, *kind, x1, y1, w, h, out, scale)
        return canvas

    def places(self, scale: int, count: int) -> list[tuple[int, int]]:
        """Random places of patches inside the slide, in scaled pixels."""
        room = np.array([self.plane.width_px, self.plane.height_px]) // scale - PATCH_PX
        places = np.random.default_rng(0).integers(0, room, (count, 2))
        return [(int(x), int(y)) for x, y in places]


def spans(begin: int, tile_px: int) -> Iterator[tuple[int, int, int, int]]:
    """The tiles under [begin, begin + PATCH_PX): number, place in the patch and in it, length."""
    place = begin
    while place < begin + PATCH_PX:
        number, inside = divmod(place, tile_px)
        length = min(tile_px - inside, begin + PATCH_PX - place)
        yield number, place - begin, inside, length
        place += length


def measure(
    level: Level, places: list[tuple[int, int]], scale: int, threads: int
) -> tuple[float, float]:
    """Wall-clock and CPU seconds of all threads together."""
    shares = [places[i::threads] for i in range(threads)]
    with futures.ThreadPoolExecutor(threads) as pool:
        wall, cpu = time.perf_counter(), time.process_time()
        list(pool.map(lambda share: [level.patch(x, y, scale) for x, y in share], shares))
        return time.perf_counter() - wall, time.process_time() - cpu


def compare(level: Level, scale: int, threads: int, count: int) -> dict[str, float]:
    """Both ways in turn, over the same places."""
    places = level.places(scale, count)
    rounds: dict[str, list[tuple[float, float]]] = {"whole": [], "part": []}
    for _ in range(ROUNDS):
        for way, found in rounds.items():
            with mock.patch.object(roi, "AVAILABLE", way == "part"):
                found.append(measure(level, places, scale, threads))
    wall, cpu = (
        {way: statistics.median(pair[i] for pair in found) for way, found in rounds.items()}
        for i in (0, 1)
    )
    rates = {way: count / seconds for way, seconds in wall.items()}
    return {**rates, "ratio": cpu["whole"] / cpu["part"]}


def check(level: Level, scale: int) -> None:
    """Stop if the two ways differ."""
    for x, y in level.places(scale, 50):
        part = level.patch(x, y, scale)
        with mock.patch.object(roi, "AVAILABLE", False):
            if not np.array_equal(part, level.patch(x, y, scale)):
                raise SystemExit(f"the patch at {x}, {y} (scale 1/{scale}) differs")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer patches, under 15 s")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--slide", type=Path, default=SLIDE, help="a slide with JPEG tiles")
    arguments = parser.parse_args()
    if not roi.AVAILABLE:
        raise SystemExit("the extension is not built: see docs/adr/0003-optional-roi-extension.md")
    level = Level(arguments.slide)
    count = 200 if arguments.quick else 2000
    result: dict[str, object] = {"slide": arguments.slide.name, "cores": os.cpu_count()}
    for name, scale in (("full_size", 1), ("half", 2)):
        check(level, scale)
        for threads in (1, 2):
            found = compare(level, scale, threads, count)
            result[f"{name}_threads_{threads}"] = {k: round(v, 2) for k, v in found.items()}
    if not arguments.json:
        report(result)
    print(json.dumps(result))


def report(result: Mapping[str, object]) -> None:
    """Print the table for people."""
    for name, found in result.items():
        if isinstance(found, dict):
            print(f"{name:20}" + "".join(f"  {key} {value:8.2f}" for key, value in found.items()))


if __name__ == "__main__":
    main()
