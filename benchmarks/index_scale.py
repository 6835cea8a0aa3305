"""An index of 29,000 slides (TCGA): how fast it opens, what it takes, how fast it is looked up.

python benchmarks/index_scale.py [--quick] [--json]

29,000 slides of 42,000 tiles, 1.2 G tiles: rows as of one real layout (six levels), one tile table
of full length. The byte counts of every 20th slide are written, the others are holes of a sparse
file (a tile of 0 bytes, which is looked up in the same way), so it takes 0.25 GB of disk instead of
5 GB. `--quick` takes 2,900 slides and extrapolates nothing.

Then the first batch of 64 patches of a stream over 1,000 rows of one real slide, in a new process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import shapely

from pathfm_cli import artifacts
from pathfm_cli.data import headers, index, mask
from pathfm_cli.wsi import tiles

SLIDES = 29_000
WRITTEN = 20
"""One slide of so many has its counts on the disk."""
WIDTH, HEIGHT, TILE = 64_000, 35_000, 240
FACTORS = (1, 4, 16, 32)
LOOKED_UP = 200_000
DRAWN = 100_000
DEMO = Path(index.__file__).parents[1] / "demo_data" / "CMU-1-Small-Region.svs"


def levels(first_tile: int, first_offset: int) -> tuple[list[dict[str, Any]], int, int]:
    """The levels of one slide, and the rows that follow those of its tiles."""
    found = []
    for factor in FACTORS:
        width, height = WIDTH // factor, HEIGHT // factor
        count = -(-width // TILE) * -(-height // TILE)
        found.append(
            {
                **{"width_px": width, "height_px": height, "downsample": float(factor)},
                **{"tile_width_px": TILE, "tile_height_px": TILE, "codec": "jpeg-ycbcr"},
                **{"prefix": 0, "first_tile": first_tile, "first_offset": first_offset},
                **{"tiles": count, "contiguous": True},
            }
        )
        first_tile += count
        first_offset += -(-count // tiles.BLOCK)
    return found, first_tile, first_offset


def make(folder: Path, slides: int) -> int:
    """`s.parquet` and `t.parquet` of so many slides, with their tile table; the number of tiles.

    Each slide's tissue is a polygon of 257 points, 4 kB.
    """
    rows, tile, offset = [], 0, 0
    for number in range(slides):
        planes, tile, offset = levels(tile, offset)
        rows.append(
            {
                **dict.fromkeys(headers.SCHEMA),
                **{"slide": f"TCGA-{number:05d}-01Z-00-DX1", "uri": f"s3://open/{number:05d}.svs"},
                **{"size_bytes": 10**9, "etag": f"{number:032x}", "vendor": "aperio"},
                **{"width_px0": WIDTH, "height_px0": HEIGHT, "mpp": 0.2525, "levels": planes},
                **{"mpp_source": "aperio", "compression": "jpeg-ycbcr", "objective": 40.0},
            }
        )
    write_tiles(folder / "tiles.safetensors", slides, tile, offset)
    frame = pl.DataFrame(rows, schema=headers.SCHEMA)
    header = artifacts.Header(kind="slides", files={"tiles": "tiles.safetensors"})
    artifacts.write_table(folder / "s.parquet", frame, header)
    middles = shapely.points(np.random.default_rng(2).integers(16_000, 19_000, (slides, 2)))
    tissue = frame.with_columns(
        geometry=shapely.to_wkb(shapely.buffer(middles, 15_000, quad_segs=64)),
        tissue_area_mm2=pl.lit(45.0),
        tissue_method=pl.lit("synthesised"),
    )
    artifacts.write_table(folder / "t.parquet", tissue, dataclasses.replace(header, kind="tissue"))
    return tile


def write_tiles(path: Path, slides: int, count: int, rows: int) -> None:
    """A sparse tile table: real checkpoints and counts for one slide of `WRITTEN`."""
    parts = {"offsets": (rows, "<u8"), "prefix_ends": (1, "<u8"), "counts": (count, "<u4")}
    parts["prefixes"] = (0, "|u1")
    empty = {name: [np.empty(0, dtype)] for name, (_, dtype) in parts.items()}
    document: dict[str, Any] = json.loads(tiles._header(empty, "synthesised")[8:])
    begin = 0
    for name, (length, dtype) in parts.items():
        end = begin + length * np.dtype(dtype).itemsize
        document[name].update(shape=[length], data_offsets=[begin, end])
        begin = end
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + begin)
    random = np.random.default_rng(0)
    mapped = np.memmap(path, np.uint8, "r+")[8 + len(text) :]
    counts = mapped[slice(*document["counts"]["data_offsets"])].view("<u4")
    offsets = mapped[slice(*document["offsets"]["data_offsets"])].view("<u8")
    each, blocks = count // slides, rows // slides
    for number in range(0, slides, WRITTEN):
        counts[number * each : (number + 1) * each] = random.integers(300, 16_000, each)
        offsets[number * blocks : (number + 1) * blocks] = np.arange(blocks) * 64 * 8000


def anonymous_kb() -> int:
    """Resident memory of this process that is no page of a file (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    return 0


def measure(folder: Path) -> dict[str, float]:
    """Open, look up and draw, in this process."""
    from pathfm_cli.data import cohort, draw

    # What any process that reads slides has loaded and warmed up.
    pl.DataFrame({"x": [1]}).write_parquet(folder / "warm.parquet")
    pl.read_parquet(folder / "warm.parquet")
    before = anonymous_kb()
    opening = []
    for _ in range(5):
        start = time.perf_counter()
        opened = cohort.open_cohort(folder / "s.parquet")
        table = opened.reader.table
        _ = opened.slides[len(opened.slides) // 2]
        opening.append(time.perf_counter() - start)
    random = np.random.default_rng(1)
    chosen = random.integers(0, len(opened.slides), LOOKED_UP // 100)
    start = time.perf_counter()
    for number in chosen.tolist():
        place = opened.slides[number].levels[0].place
        table.ranges(place, random.integers(0, place.tiles, 100))
    looked = LOOKED_UP / (time.perf_counter() - start)
    opened = cohort.open_cohort(folder / "t.parquet")
    sampler = draw.Sampler(opened.table, draw.SampleConfig(mpp=(0.5, 1.0)), 0)
    start = time.perf_counter()
    for number in range(DRAWN):
        patch = sampler.draw(number)
        slide = opened.slides[patch.slide]
        level = slide.levels[slide.level_for(patch.mpp)]
        x, y = (int(v / s) for v, s in zip((patch.x_px0, patch.y_px0), level.scale, strict=True))
        for row in (0, 1):
            table.run(level.place, (y // TILE + row) * level.columns + x // TILE, 2)
    drawn = DRAWN / (time.perf_counter() - start)
    return {
        "open_ms": min(opening) * 1e3,
        "first_open_ms": opening[0] * 1e3,
        "rss_mb": (anonymous_kb() - before) / 1e3,
        "lookups_per_s": looked,
        "draws_per_s": drawn,
    }


FIRST = """
import sys, time
from pathlib import Path
from pathfm_cli.data import draw, stream
start = time.perf_counter()
config = draw.SampleConfig(mpp=(0.5, 1.0))
batches = stream.batches(sys.argv[1], config, 0, batch_size=64, first_step=0, steps=10)
next(batches)
print(time.perf_counter() - start)
batches.close()
"""


def first_batch(folder: Path, slides: int) -> float:
    """Seconds from nothing opened to the first 64 patches of a stream over so many slides."""
    index.index([str(DEMO)], folder / "s.parquet")
    mask.mask(folder / "s.parquet", folder / "one.parquet")
    one = artifacts.read_table(folder / "one.parquet")
    names = [f"{number:04d}" for number in range(slides)]
    for name in names:
        os.link(DEMO, folder / f"{name}.svs")
    rows = pl.concat([one.frame] * slides).with_columns(
        slide=pl.Series(names), uri=pl.Series([str(folder / f"{name}.svs") for name in names])
    )
    # A link has the same size and time, so the etag of each is that of the slide.
    artifacts.write_table(folder / "t.parquet", rows, one.header)
    command = [sys.executable, "-c", FIRST, str(folder / "t.parquet")]
    return min(float(subprocess.check_output(command)) for _ in range(3))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    slides = SLIDES // 10 if options.quick else SLIDES
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        count = make(Path(folder), slides)
        command = [sys.executable, __file__, "--measure", folder]
        found = {"slides": slides, "tiles": count}
        found |= json.loads(subprocess.check_output(command))
        written = os.stat(Path(folder) / "tiles.safetensors")
        found["table_gb"] = written.st_size / 1e9
        found["table_on_disk_gb"] = written.st_blocks * 512 / 1e9
    with tempfile.TemporaryDirectory(dir=DEMO.parent.parent.parent) as folder:
        found["first_batch_s"] = first_batch(Path(folder), 200 if options.quick else 1000)
    print(f"{slides:,} slides, {count:,} tiles (sparse: 1 of {WRITTEN} slides written)")
    print(f"open {found['open_ms']:.1f} ms (first time {found['first_open_ms']:.1f} ms)")
    print(f"{found['lookups_per_s']:,.0f} look-ups/s, {found['draws_per_s']:,.0f} draws/s")
    print(f"{found['rss_mb']:.0f} MB resident beyond files after {DRAWN:,} draws")
    print(f"first batch of 64 in {found['first_batch_s']:.2f} s")
    if options.json:
        print(json.dumps({key: round(value, 3) for key, value in found.items()}))


if __name__ == "__main__":
    main()
