"""How fast the tissue share of patches is computed, and what 29,000 slides of polygons take.

python benchmarks/overlap.py [--quick] [--json]

Polygons are the hand-checked outlines of `tests/data/outlines`, simplified as `pathfm mask` does.
Overlap: candidate squares of 256 px at 0.25 to 2 um/px anywhere in the bounds of the tissue;
rates are per second of processor time, one thread, and each polygon is prepared within the time.
Peers are shapely's: `clip_by_rect` square by square, and `intersection` vectorised over a prepared
geometry; `max_error` is the largest difference of a share from the latter's.
The cohort: a `tissue` artifact of 29,000 slides (1 to 4 turned outlines each, no two alike), opened
and made ready to draw in a fresh process, the first 100 patches included; then 2,000 draws more,
each of which parses its slide's polygons. Memory is growth over the process before opening.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import shapely
from shapely import affinity, geometry

from pathfm_cli import artifacts
from pathfm_cli.data import cohort, draw, index, outlines, polygons
from pathfm_cli.data import overlap as library

ROOT = Path(__file__).parents[1]
OUTLINES = ROOT / "tests" / "data" / "outlines"
DEMO = ROOT / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
COHORT = 29_000
SIZE_PX = 256
MPPS = (0.25, 0.5, 1.0, 2.0)
MPP0 = 0.5
"""Taken for the mpp of every outline: shapes matter here, not their true size."""
SIDE_PX0 = 100_000
"""Width and height of a slide of the cohort."""


def shapes() -> list[geometry.MultiPolygon]:
    """Real outlines, simplified to the tolerance of `pathfm mask`."""
    tolerance_px0 = polygons.Cleaning().tolerance_um / MPP0
    read = (outlines.read(file) for file in outlines.files(OUTLINES))
    return [polygons.multipolygon(shapely.simplify(shape, tolerance_px0)) for shape in read]


def candidates(tissue: geometry.MultiPolygon, count: int, side_px0: float) -> np.ndarray:
    """(N, 2) upper left corners of squares that touch the bounds of the tissue."""
    low, high = np.asarray(tissue.bounds[:2]) - side_px0, np.asarray(tissue.bounds[2:])
    return low + np.random.default_rng(0).random((count, 2)) * (high - low)


def by_overlap(tissue: geometry.MultiPolygon, places: np.ndarray, side_px0: float) -> np.ndarray:
    """What pathfm does: all squares of a slide at once."""
    return library.Overlap(tissue).fraction(places[:, 0], places[:, 1], side_px0)


def by_clip(tissue: geometry.MultiPolygon, places: np.ndarray, side_px0: float) -> np.ndarray:
    """GEOS' clip by a rectangle, square by square."""
    return np.array([draw.tissue_fraction(tissue, x, y, side_px0) for x, y in places.tolist()])


def by_intersection(
    tissue: geometry.MultiPolygon, places: np.ndarray, side_px0: float
) -> np.ndarray:
    """Vectorised intersection; squares wholly inside or outside are told by the prepared shape."""
    shapely.prepare(tissue)
    boxes = shapely.box(places[:, 0], places[:, 1], *(places + side_px0).T)
    share = shapely.contains(tissue, boxes).astype(np.float64)
    partly = (share == 0) & shapely.intersects(tissue, boxes)
    share[partly] = shapely.area(shapely.intersection(tissue, boxes[partly])) / side_px0**2
    return share


def rate(
    find: Callable[..., np.ndarray], tissues: list[geometry.MultiPolygon], count: int
) -> tuple[float, list[np.ndarray]]:
    """Squares per second of processor time, and their shares; `count` a slide and mpp."""
    shares, taken = [], 0.0
    for tissue in tissues:
        for mpp in MPPS:
            side_px0 = draw.extent_px0(SIZE_PX, mpp, MPP0)
            places = candidates(tissue, count, side_px0)
            start = time.process_time()
            shares.append(find(tissue, places, side_px0))
            taken += time.process_time() - start
    return count * len(shares) / taken, shares


def overlaps(*, quick: bool) -> dict[str, float]:
    """Rates of pathfm and the peers, best of alternating rounds, and the largest difference."""
    tissues = shapes()
    many, few = (5_000, 50) if quick else (20_000, 250)
    best = {"overlaps_per_s": 0.0, "clip_per_s": 0.0, "intersection_per_s": 0.0}
    for _ in range(1 if quick else 3):
        runs = ((by_overlap, many), (by_clip, few), (by_intersection, few))
        for (find, count), name in zip(runs, best, strict=True):
            best[name] = max(best[name], rate(find, tissues, count)[0])
    ours, theirs = (rate(find, tissues, few)[1] for find in (by_overlap, by_intersection))
    worst = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    return {
        **best,
        "overlap_vs_clip": best["overlaps_per_s"] / best["clip_per_s"],
        "overlap_vs_intersection": best["overlaps_per_s"] / best["intersection_per_s"],
        "overlap_max_error": worst,
        "overlap_vertices": float(np.mean(shapely.get_num_coordinates(tissues))),
    }


def write_cohort(folder: Path, count: int) -> tuple[Path, float]:
    """Write a `tissue` artifact of `count` slides; returns it and its mean number of vertices."""
    slides = folder / "slides.parquet"
    index.index([str(DEMO)], slides)
    table = artifacts.read_table(slides)
    random = np.random.default_rng(1)
    real = shapes()
    pool = np.asarray([_turned(real, random) for _ in range(400)], dtype=object)
    chosen = random.integers(0, len(pool), count)
    wkb = [wkb for number in range(0, count, 1000) for wkb in _moved(pool[chosen][number:][:1000])]
    area = shapely.area(pool)[chosen] * MPP0**2 / 1e6
    frame = pl.concat([table.frame] * count).with_columns(
        pl.Series("slide", [f"slide-{number:05}" for number in range(count)]),
        pl.Series("geometry", wkb, dtype=pl.Binary),
        pl.Series("tissue_area_mm2", area),
        width_px0=pl.lit(SIDE_PX0, pl.Int64),
        height_px0=pl.lit(SIDE_PX0, pl.Int64),
        mpp=pl.lit(MPP0),
        tissue_method=pl.lit("annotations"),
        tissue_doubt=pl.lit(None, pl.Float64),
    )
    out = folder / "tissue.parquet"
    header = artifacts.Header(
        kind="tissue", settings={"made_of": count}, files=cohort.companions(table, out)
    )
    artifacts.write_table(out, frame, header)
    return out, float(shapely.get_num_coordinates(pool)[chosen].mean())


def _turned(
    pool: list[geometry.MultiPolygon], random: np.random.Generator
) -> geometry.MultiPolygon:
    """One to four outlines side by side, each turned and scaled to a quarter of the slide."""
    parts: list[geometry.Polygon] = []
    for quarter in random.permutation(4)[: random.integers(1, 5)]:
        shape = affinity.rotate(pool[random.integers(len(pool))], random.uniform(0, 360))
        left, top, right, bottom = shape.bounds
        scale = SIDE_PX0 / 2 / max(right - left, bottom - top)
        origin = np.array([quarter % 2, quarter // 2]) * SIDE_PX0 / 2
        moved = shapely.transform(
            shape, lambda xy, s=scale, o=origin, low=(left, top): (xy - low) * s + o
        )
        parts.extend(moved.geoms)
    return polygons.multipolygon(geometry.MultiPolygon(parts))


def _moved(pool: np.ndarray) -> list[bytes]:
    """WKB of shapes, each moved by its own part of a pixel, so that no two are alike."""
    points, owner = shapely.get_coordinates(pool, return_index=True)
    shift = np.random.default_rng(owner.size).random((len(pool), 2))
    return shapely.to_wkb(shapely.set_coordinates(pool.copy(), points + shift[owner])).tolist()


def load_in_process(path: str) -> None:
    """Open a cohort, ready a sampler, draw; print seconds, megabytes and draws per second."""
    before, start, cpu = peak_mb(), time.perf_counter(), time.process_time()
    sampler = draw.Sampler(cohort.open_cohort(path).table, draw.SampleConfig(mpp=MPPS), seed=0)
    for number in range(100):
        sampler.draw(number)
    taken = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    cpu = time.process_time()
    for number in range(100, 2_100):
        sampler.draw(number)
    draws = 2_000 / (time.process_time() - cpu)
    print(json.dumps(taken | {"draws_per_s": draws, "mb": peak_mb() - before}))


def cohort_load(*, quick: bool) -> dict[str, float]:
    """Seconds and megabytes for the cohort; `--quick` takes a tenth of it, see `cohort_slides`."""
    count = COHORT // 10 if quick else COHORT
    result = {"cohort_slides": float(count)}
    with tempfile.TemporaryDirectory() as folder:
        path, result["cohort_vertices"] = write_cohort(Path(folder), count)
        result["cohort_file_mb"] = path.stat().st_size / 2**20
        run = subprocess.run(
            [sys.executable, __file__, "--load", str(path)],
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(run.stdout)
        return result | {f"cohort_{key}": value for key, value in found.items()}


def measure(*, quick: bool) -> dict[str, float]:
    """All numbers."""
    return overlaps(quick=quick) | cohort_load(quick=quick)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load_in_process(arguments.load)
        return
    result = measure(quick=arguments.quick)
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:28} {value:.6g}")
    else:
        print(json.dumps(result))


def peak_mb() -> float:
    """Highest resident memory of this process so far (Linux), MiB."""
    # Not getrusage's ru_maxrss: a child inherits its parent's peak there.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


if __name__ == "__main__":
    main()
