"""Mutated headers: an error row, or a slide that reads in bounds; never a crash or a huge array."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import ramps
import tifffile

from pathfm_cli import errors
from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import pyramid, slide

MUTATIONS = 75
TOGETHER = 25
"""Mutations that share an index."""
MAX_BYTES = 200 << 20


def header_bytes(path: Path) -> list[int]:
    """Offsets of the file's header, its directories and the values they point to, up to 4 kB."""
    places = set(range(16))
    with tifffile.TiffFile(path) as file:
        width = 20 if file.is_bigtiff else 12
        for page in file.pages:
            places |= set(range(page.offset, page.offset + 2 + width * len(page.tags) + 8))
            for tag in page.tags:
                size = min(4096, tag.valuebytecount)
                places |= set(range(tag.valueoffset, tag.valueoffset + size))
    return sorted(place for place in places if place < path.stat().st_size)


def mutate(whole: bytes, places: list[int], rng: np.random.Generator) -> bytes:
    data = bytearray(whole)
    for place in rng.choice(places, int(rng.integers(1, 6))):
        kind = rng.integers(4)
        if kind == 0:
            data[place] = int(rng.integers(256))
        elif kind == 1:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[place : place + 4] = b"\xff\xff\xff\x7f"[: len(data) - place]
        else:
            data[place : place + 4] = bytes(4)[: len(data) - place]
    if rng.random() < 0.1:
        del data[int(rng.integers(len(data))) :]
    return bytes(data)


def try_out(paths: list[Path], out: Path) -> tuple[int, float]:
    """Index and read slides; how many could be read, and the longest time in s.

    Time of this process, so that a busy machine is no hang; a wait would hang the test.
    """
    start = time.process_time()
    index.index(
        [str(path) for path in paths], out, mpp_overrides=["0.5"], overwrite=True, workers=1
    )
    found = cohort.open_cohort(out)
    longest_s = time.process_time() - start
    assert found.table.frame.height == len(paths)
    for one in found.slides:
        start = time.process_time()
        read(found.reader, one)
        longest_s = max(longest_s, time.process_time() - start)
    return len(found.slides), longest_s


def read(reader: pyramid.Reader, one: slide.Slide) -> None:
    """Read two corners of each level, and a thumbnail, or be told that they cannot be read."""
    for number, level in enumerate(one.levels):
        x, y = max(0, level.width_px - 40), max(0, level.height_px - 40)
        for corner in ((0, 0), (x, y)):
            try:
                pixels = reader.read_region(one, *corner, number, 50, 50)
                assert pixels.shape == (50, 50, 3)
            except errors.SlideError:
                continue
    with contextlib.suppress(errors.SlideError):
        reader.read_thumbnail(one, 64.0)


def try_mutations(
    whole: Path, places: list[int], rng: np.random.Generator, work: Path, count: int
) -> tuple[int, float]:
    """Try `TOGETHER` mutations of a slide at a time; how many could be read, the longest time."""
    data, out = whole.read_bytes(), work / "s.parquet"
    could, longest_s = 0, 0.0
    for first in range(0, count, TOGETHER):
        numbers = range(first, min(first + TOGETHER, count))
        paths = [work / f"m{number}{whole.suffix}" for number in numbers]
        for path in paths:
            path.write_bytes(mutate(data, places, rng))
        of_these, seconds = try_out(paths, out)
        could, longest_s = could + of_these, max(longest_s, seconds)
        for path in paths:
            path.unlink()
    return could, longest_s


DEMO = Path(index.__file__).parents[1] / "demo_data" / "CMU-1-Small-Region.svs"


def original(name: str, formats_folder: Path, make_pyramid: ramps.MakePyramid) -> Path:
    """A small slide, whole."""
    if name == "ome":
        description = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels '
            'SizeX="256" SizeY="128" SizeC="3" Type="uint8" PhysicalSizeX="0.25" '
            'PhysicalSizeY="0.25"/></Image></OME>'
        )
        return make_pyramid(size=(256, 128), factors=(1,), description=description)
    if name == "big":
        return make_pyramid(size=(256, 128), factors=(1, 2), bigtiff=True, compression="jpeg")
    return DEMO if name == "demo" else formats_folder / "openslide-fixtures" / name


@pytest.mark.parametrize("seed", ["small.svs", "boxes.tiff", "ome", "big"])
def test_mutated_headers(
    formats_folder: Path, make_pyramid: ramps.MakePyramid, tmp_path: Path, seed: str
) -> None:
    whole = original(seed, formats_folder, make_pyramid)
    places = header_bytes(whole)
    rng = np.random.default_rng(20240404)
    tracemalloc.start()
    try:
        could, _ = try_mutations(whole, places, rng, tmp_path, MUTATIONS)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    # Some must survive, or nothing but the first check was tried.
    assert 0 < could < MUTATIONS


MANY = {"small.svs": 1200, "boxes.tiff": 1200, "ome": 1200, "big": 1200, "demo": 200}
"""Mutations of each slide in the long test, 5,000; the demo's is large and slow to read."""
MAX_S = 2.0
GIB = 1 << 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_thousands_of_mutated_headers(
    formats_folder: Path, make_pyramid: ramps.MakePyramid, tmp_path: Path, seed: str, capsys
) -> None:
    whole = original(seed, formats_folder, make_pyramid)
    # A process of its own: a crash of a decoder is its exit code.
    command = [sys.executable, __file__, str(whole), str(tmp_path / "work"), str(MANY[seed])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    with capsys.disabled():
        sys.stdout.write(f"\n{seed}: {told}\n")
    assert told["tried"] == MANY[seed]
    assert 0 < told["read"] < MANY[seed]
    assert told["longest_s"] < MAX_S


def many(whole: Path, work: Path, count: int) -> dict[str, float]:
    """Try mutations in this process, which may not grow by more than 1 GiB."""
    work.mkdir()
    places = header_bytes(whole)
    rng = np.random.default_rng(20240405)
    try_out([whole], work / "s.parquet")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    could, longest_s = try_mutations(whole, places, rng, work, count)
    return {"tried": count, "read": could, "longest_s": round(longest_s, 3)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(many(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
