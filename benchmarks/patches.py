"""Patches per second at random places of local slides, ours against other readers.

python benchmarks/patches.py [--quick] [--json] [--slide FILE]

256 px patches at level 0, and at twice its mpp where the slide has no such level; files in the page
cache. Two slides: a real one and a large one made of its tissue (`made_slide`). In the same rounds:

* `ours`, and `ours_whole`, which is ours as it is where the extension is not built;
* the peers that are installed;
* `limit`: what decoding alone costs, all tiles of each patch whole, by simplejpeg, from memory.

Readers take turns; each counts with its best round. Ratios of one thread are ratios of processor
time, which other work on the machine disturbs less than the rates; those of two threads and two
processes are of wall time. `half` places are whole pixels of the result, as of a grid of patches;
`half_odd` ones are not, so no tile can be decoded at a smaller scale. The keys of the last line are
those of the slide where ours does worse. `window16_vs_1`: 16 patches from each window of 1024 px
(`pathfm_cli.data.windows`) over 16 from anywhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from pathlib import Path
from unittest import mock

import made_slide
import numpy as np
import peers
import simplejpeg

from pathfm_cli.data import cohort
from pathfm_cli.wsi import pyramid, regions, roi

PATCH_PX = 256
BATCH = 64
WINDOW_PX = 1024

Place = tuple[int, int]
Cost = tuple[float, float]
"""Wall and processor seconds."""


class Ours:
    """Our reader on one slide."""

    def __init__(self, found: cohort.Cohort, factor: int, threads: int = 1) -> None:
        self.reader, (self.slide,) = found.reader, found.slides
        self.mpp = factor * self.slide.mpp
        self.pool = futures.ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, places: list[Place]) -> None:
        """Read batch by batch."""
        for begin in range(0, len(places), BATCH):
            wanted = [
                pyramid.Request(self.slide, x, y, self.mpp, PATCH_PX)
                for x, y in places[begin : begin + BATCH]
            ]
            _, failures = self.reader.read_patches(wanted, self.pool)
            if failures:
                raise SystemExit(f"patches failed: {failures}")

    def whole(self, places: list[Place]) -> None:
        """The same without the extension."""
        with mock.patch.object(roi, "AVAILABLE", False):
            self(places)


class Limit:
    """Decoding the tiles of each patch, and nothing else."""

    def __init__(self, found: cohort.Cohort, factor: int, places: list[Place]) -> None:
        (slide,) = found.slides
        level = slide.levels[0]
        prefix = found.reader.table.prefix(level.place.prefix)
        extent = factor * PATCH_PX
        windows = [regions.Window(x, y, extent, extent) for x, y in places]
        touched = [list(regions.touched(level, window, 1)) for window in windows]
        source = regions.store.open_source(slide.uri)
        streams: dict[int, bytes] = {}
        for tile in {number for numbers in touched for number in numbers}:
            ((offset, count),) = found.reader.table.run(level.place, tile, 1)
            streams[tile] = prefix + source.read(offset, count)[2:]
        self.shape = (level.tile_height_px, level.tile_width_px, 3)
        self.streams = [[streams[tile] for tile in numbers] for numbers in touched]

    def __call__(self, places: list[Place]) -> None:
        """Decode."""
        for streams in self.streams:
            for data in streams:
                simplejpeg.decode_jpeg(data, "RGB", buffer=np.empty(self.shape, np.uint8))


def peer(name: str, path: Path, factor: int, threads: int = 1) -> Callable[[list[Place]], None]:
    """A peer on one slide, opened once for all threads."""
    patch = peers.PEERS[name](path)
    pool = futures.ThreadPoolExecutor(threads) if threads > 1 else None

    def read(places: list[Place]) -> None:
        def one(place: Place) -> np.ndarray:
            return patch(*place, factor * PATCH_PX, PATCH_PX)

        for pixels in pool.map(one, places) if pool else map(one, places):
            if pixels.shape != (PATCH_PX, PATCH_PX, 3):
                raise SystemExit(f"{name} returned {pixels.shape}")

    return read


def timed(work: Callable[[list[Place]], None], places: list[Place]) -> Cost:
    """Cost of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(places)
    return time.perf_counter() - wall, time.process_time() - cpu


def contest(
    readers: dict[str, Callable[[list[Place]], None]], places: list[Place], rounds: int
) -> dict[str, Cost]:
    """Best wall and best processor seconds of each reader; they take turns."""
    found: dict[str, list[Cost]] = {name: [] for name in readers}
    for work in readers.values():
        work(places[:BATCH])
    for _ in range(rounds):
        for name, work in readers.items():
            found[name].append(timed(work, places))
    return {name: (min(w for w, _ in c), min(p for _, p in c)) for name, c in found.items()}


def random_places(slide: pyramid.Slide, factor: int, count: int, odd: int = 0) -> list[Place]:
    """Places of patches of `factor` times the mpp of level 0; `odd` is added to each."""
    room = np.array([slide.width_px0, slide.height_px0]) // factor - PATCH_PX - 1
    places = np.random.default_rng(0).integers(0, room, (count, 2)) * factor + odd
    return [(x, y) for x, y in places.tolist()]


def window_places(slide: pyramid.Slide, count: int) -> list[Place]:
    """Places in windows, 16 in a row from each."""
    random = np.random.default_rng(0)
    room = np.array([slide.width_px0, slide.height_px0]) - WINDOW_PX
    corners = random.integers(0, room, (count // 16, 2)).repeat(16, axis=0)
    inside = random.integers(0, WINDOW_PX - PATCH_PX + 1, (len(corners), 2))
    return [(x, y) for x, y in (corners + inside).tolist()]


def one_thread(found: cohort.Cohort, factor: int, places: list[Place], rounds: int) -> dict:
    """Rates per second, and processor time of others over ours."""
    ours = Ours(found, factor)
    path = Path(found.slides[0].uri)
    readers = {"ours": ours, "ours_whole": ours.whole, "limit": Limit(found, factor, places)}
    readers |= {name: peer(name, path, factor) for name in peers.installed()}
    costs = contest(readers, places, rounds)
    result: dict[str, float] = {name: len(places) / wall for name, (wall, _) in costs.items()}
    for name, (_, cpu) in costs.items():
        for mine in ("ours", "ours_whole"):
            if name not in ("ours", "ours_whole"):
                result[f"{mine}_vs_{name}"] = cpu / costs[mine][1]
    return result


def two_threads(found: cohort.Cohort, places: list[Place], rounds: int) -> dict:
    """Rates of two threads on one open slide."""
    path = Path(found.slides[0].uri)
    readers: dict[str, Callable[[list[Place]], None]] = {"ours": Ours(found, 1, 2)}
    readers |= {name: peer(name, path, 1, 2) for name in peers.installed()}
    costs = contest(readers, places, rounds)
    return {name: len(places) / wall for name, (wall, _) in costs.items()}


def _process(table: str, places: list[Place], start, seconds) -> None:
    """One of several processes that begin together, once a round."""
    ours = Ours(cohort.open_cohort(table), 1)
    ours(places[:BATCH])
    while True:
        start.wait()
        seconds.put(timed(ours, places))


def processes(table: Path, places: list[Place], rounds: int) -> dict[str, float]:
    """Rates of one and of two processes, taking turns.

    Also the processor time of a patch with one process over that with two, times two: what the
    second process would bring if the machine had nothing else to do.
    """
    context = multiprocessing.get_context("spawn")
    teams = []
    for size in (1, 2):
        start, seconds = context.Barrier(size + 1), context.Queue()
        arguments = (str(table), places, start, seconds)
        team = [context.Process(target=_process, args=arguments, daemon=True) for _ in range(size)]
        for process in team:
            process.start()
        teams.append((size, start, seconds, team))
    best: dict[int, list[float]] = {1: [np.inf, np.inf], 2: [np.inf, np.inf]}
    for _ in range(rounds):
        for size, start, seconds, _ in teams:
            start.wait()
            costs = [seconds.get() for _ in range(size)]
            now = (max(w for w, _ in costs), sum(p for _, p in costs) / size)
            best[size] = [min(pair) for pair in zip(best[size], now, strict=True)]
    for *_, team in teams:
        for process in team:
            process.kill()
    return {
        "one": len(places) / best[1][0],
        "two": 2 * len(places) / best[2][0],
        "two_processes_vs_one": 2 * best[1][0] / best[2][0],
        "two_processes_vs_one_cpu": 2 * best[1][1] / best[2][1],
    }


def measure(path: Path, folder: Path, quick: bool) -> dict:
    """Everything about one slide."""
    found = made_slide.opened(path, folder)
    (slide,) = found.slides
    count, rounds = (128, 2) if quick else (512, 6)
    result: dict = {"level0": one_thread(found, 1, random_places(slide, 1, count), rounds)}
    for name, odd in (("half", 0), ("half_odd", 1)):
        places = random_places(slide, 2, count // 2, odd)
        result[name] = one_thread(found, 2, places, rounds)
    result["threads_2"] = two_threads(found, random_places(slide, 1, count), rounds)
    table = folder / f"{path.stem}.parquet"
    result["processes"] = processes(table, random_places(slide, 1, count), 2 * rounds)
    ours = Ours(found, 1)
    alone, together = random_places(slide, 1, count), window_places(slide, count)
    cost = {
        name: min(timed(ours, places)[1] for _ in range(rounds))
        for name, places in (("alone", alone), ("together", together))
    }
    result["window16_vs_1"] = cost["alone"] / cost["together"]
    return result


def worst(slides: Iterable[dict]) -> dict[str, float]:
    """The stated keys, of the slide where ours does worse."""
    keys = {
        "l0_vs_openslide": ("level0", "ours_vs_openslide"),
        "l0_vs_tiffslide": ("level0", "ours_vs_tiffslide"),
        "l0_vs_cucim": ("level0", "ours_vs_cucim"),
        "l0_vs_wsistream": ("level0", "ours_vs_wsistream"),
        "l0_vs_limit": ("level0", "ours_vs_limit"),
        "l0_whole_vs_openslide": ("level0", "ours_whole_vs_openslide"),
        "l0_whole_vs_limit": ("level0", "ours_whole_vs_limit"),
        "half_vs_openslide": ("half", "ours_vs_openslide"),
        "half_whole_vs_openslide": ("half", "ours_whole_vs_openslide"),
        "half_odd_vs_openslide": ("half_odd", "ours_vs_openslide"),
        "two_processes_vs_one": ("processes", "two_processes_vs_one"),
        "two_processes_vs_one_cpu": ("processes", "two_processes_vs_one_cpu"),
    }
    slides = list(slides)
    found = {
        key: round(min(slide[part][name] for slide in slides), 2)
        for key, (part, name) in keys.items()
        if name in slides[0][part]
    }
    found["window16_vs_1"] = round(min(slide["window16_vs_1"] for slide in slides), 2)
    return found


def report(name: str, result: dict) -> None:
    """Print one slide for people."""
    print(name)
    for part, values in result.items():
        values = values if isinstance(values, dict) else {"": values}
        print(f"  {part:14}" + "  ".join(f"{key} {value:.2f}" for key, value in values.items()))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer patches, a smaller slide")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--slide", type=Path, default=made_slide.SLIDE, help="JPEG, no 2x level")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = folder / "made.svs"
        made_slide.build(made, 12_000 if options.quick else 40_000, options.slide)
        found = {path.name: measure(path, folder, options.quick) for path in (options.slide, made)}
    if not options.json:
        for slide, result in found.items():
            report(slide, result)
        print("not installed:", ", ".join(set(peers.PEERS) - set(peers.installed())) or "none")
    load = os.getloadavg()[0]
    about = {"extension": roi.AVAILABLE, "cores": os.cpu_count(), "load": round(load, 1)}
    print(json.dumps(worst(found.values()) | about))


if __name__ == "__main__":
    main()
