"""Cohorts of 1k, 29k and 1M slides through index load, filters, sampling and the start of a stream.

python benchmarks/scale.py [--quick] [--json] [--plot FILE.png]

One real slide (of the demo) stands in every row under another name, with a tissue polygon of its
own, so that patches can be read; nothing else is a copy. Each size is measured in a process of its
own, best of three rounds. `exponents` are the slopes of log cost over log slides between the last
two sizes: 1 is linear, and more than `LINEAR` ends in exit 1. The stream begins once at patch 0 and
once a billion patches later; memory is looked at after many draws and again after more. `--quick`
takes 1k, 4k and 29k slides, and judges nothing: there it is all milliseconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import shapely

from pathfm_cli import artifacts
from pathfm_cli.data import cohort, draw, index, select, stream

SIZES = (1_000, 29_000, 1_000_000)
QUICK = (1_000, 4_000, 29_000)
ROUNDS = 3
DRAWN = 20_000
WARM = 60_000
"""Meanwhile the allocator gives back what measuring had freed."""
LATER = 10**9
BATCH = 16
SEED = 7
CONFIG = draw.SampleConfig(mpp=(0.5, 1.0), size_px=128)
DEMO = Path(index.__file__).parents[1] / "demo_data" / "CMU-1-Small-Region.svs"
LINEAR = 1.15
"""What still is linear: costs of milliseconds carry that much noise."""
COSTS = ("load_s", "where_s", "subset_s", "sampler_s", "stream_start_s", "rss_mb")


def make(folder: Path, slides: int) -> Path:
    """A `tissue` artifact of so many rows; each polygon has 17 points, 0.3 kB."""
    one = folder / "one.parquet"
    if not one.exists():
        index.index([str(DEMO)], one)
    table = artifacts.read_table(one)
    number = pl.int_range(slides, eager=True)
    middles = np.random.default_rng(1).integers(900, 1300, (slides, 2))
    circles = shapely.buffer(shapely.points(middles), 800, quad_segs=4)
    frame = table.frame[np.zeros(slides, dtype=np.int64)].with_columns(
        slide=pl.format("S{}", number.cast(pl.String).str.zfill(7)),
        organ=pl.Series(["colon", "liver", "lung", "skin"] * (slides // 4), dtype=pl.String),
        geometry=pl.Series(shapely.to_wkb(circles), dtype=pl.Binary),
        tissue_area_mm2=pl.lit(0.5),
        tissue_method=pl.lit("synthesised"),
        tissue_doubt=pl.lit(0.0),
    )
    out = folder / f"{slides}.parquet"
    header = artifacts.Header(kind="tissue", files=cohort.companions(table, out))
    artifacts.write_table(out, frame, header)
    return out


def best(work: Callable[[], Any]) -> tuple[float, Any]:
    """Shortest time of some rounds, and the last result."""
    times, result = [], None
    for _ in range(ROUNDS):
        began = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - began)
    return min(times), result


def anonymous_mb() -> float:
    """Memory of this process beyond what files hold."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e3
    return math.nan


def first_batch(path: Path, first_step: int) -> float:
    """Seconds from the call to the first batch of a stream."""
    began = time.perf_counter()
    batches = stream.batches(
        path, CONFIG, SEED, batch_size=BATCH, first_step=first_step, steps=1, workers=0
    )
    next(iter(batches))
    return time.perf_counter() - began


def measure(path: Path) -> dict[str, float]:
    """Everything about one size, in a fresh process."""
    before = anonymous_mb()
    opened = cohort.open_cohort(path)
    held = anonymous_mb() - before
    load_s, opened = best(lambda: cohort.open_cohort(path))
    frame = opened.table.frame
    condition = "organ == 'colon' and mpp < 0.6"
    where_s, _ = best(lambda: select.chosen(frame, condition, 1.0, 0))
    subset_s, _ = best(lambda: select.chosen(frame, "", 0.1, 0))
    sampler_s, sampler = best(lambda: draw.Sampler(opened.table, CONFIG, SEED))
    for number in range(WARM):
        sampler.draw(LATER + number)
    gc.collect()
    before = anonymous_mb()
    began = time.perf_counter()
    for number in range(DRAWN):
        sampler.draw(number)
    draws_per_s = DRAWN / (time.perf_counter() - began)
    drawn_mb = anonymous_mb() - before
    start_s = min(first_batch(path, 0) for _ in range(ROUNDS))
    later_s = min(first_batch(path, LATER // BATCH) for _ in range(ROUNDS))
    return {
        "load_s": load_s,
        "where_s": where_s,
        "subset_s": subset_s,
        "sampler_s": sampler_s,
        "stream_start_s": start_s,
        "rss_mb": held,
        "draws_per_s": draws_per_s,
        "later_batch_s": later_s,
        "drawn_mb": drawn_mb,
    }


def exponents(sizes: tuple[int, ...], found: dict[int, dict[str, float]]) -> dict[str, float]:
    """Slope of log cost over log slides between the last two sizes."""
    small, large = sizes[-2:]
    return {
        name: math.log(found[large][name] / found[small][name]) / math.log(large / small)
        for name in COSTS
    }


def plot(path: Path, sizes: tuple[int, ...], found: dict[int, dict[str, float]]) -> None:
    """Cost over slides on logarithmic axes, with a linear one to compare."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in COSTS[:-1]:
        left.loglog(sizes, [found[size][name] for size in sizes], marker="o", label=name)
    last = max(found[sizes[-1]][name] for name in COSTS[:-1])
    linear = [last * size / sizes[-1] for size in sizes]
    left.loglog(sizes, linear, "--", color="grey", label="linear")
    left.set(xlabel="slides", ylabel="s")
    left.legend(fontsize=8)
    right.plot(sizes, [found[s]["rss_mb"] for s in sizes], marker="o", label="cohort held, MB")
    drawn = [found[s]["drawn_mb"] for s in sizes]
    right.plot(sizes, drawn, marker="o", label=f"more after {DRAWN:,} draws, MB")
    right.set_xscale("log")
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(-0.5, 2e3)
    right.set(xlabel="slides", ylabel="MB a process")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Parse, measure each size in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure)))
        return
    sizes = QUICK if asked.quick else SIZES
    found = {}
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        for size in sizes:
            path = make(Path(folder), size)
            command = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[size] = json.loads(done.stdout)
            path.unlink()
            print(
                f"{size:>9,} slides: " + ", ".join(f"{k} {v:.4g}" for k, v in found[size].items())
            )
    slopes = exponents(sizes, found)
    print("exponents: " + ", ".join(f"{k} {v:.2f}" for k, v in slopes.items()))
    if asked.plot:
        plot(asked.plot, sizes, found)
    if asked.json:
        print(json.dumps({"sizes": found, "exponents": slopes}))
    if asked.quick:
        return
    if steep := [
        f"{name} grows with the power {v:.2f}" for name, v in slopes.items() if v > LINEAR
    ]:
        raise SystemExit("; ".join(steep))


if __name__ == "__main__":
    main()
