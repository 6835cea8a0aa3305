"""Mutated headers: an error row, or a slide that reads in bounds; never a crash or a huge array."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import ramps
import tifffile

from pathfm_cli import errors
from pathfm_cli.data import cohort, index

MUTATIONS = 300
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


def try_out(path: Path, out: Path) -> bool:
    """Index and read a slide; whether it could be read."""
    index.index([str(path)], out, mpp_overrides=["0.5"], overwrite=True, workers=1)
    found = cohort.open_cohort(out)
    for slide in found.slides:
        for number, level in enumerate(slide.levels):
            x, y = max(0, level.width_px - 40), max(0, level.height_px - 40)
            for corner in ((0, 0), (x, y)):
                try:
                    pixels = found.reader.read_region(slide, *corner, number, 50, 50)
                    assert pixels.shape == (50, 50, 3)
                except errors.SlideError:
                    continue
        try:
            found.reader.read_thumbnail(slide, 64.0)
        except errors.SlideError:
            continue
    return bool(found.slides)


@pytest.mark.parametrize("seed", ["small.svs", "boxes.tiff", "ome", "big"])
def test_mutated_headers(
    formats_folder: Path, make_pyramid: ramps.MakePyramid, tmp_path: Path, seed: str
) -> None:
    if seed == "ome":
        description = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels '
            'SizeX="256" SizeY="128" SizeC="3" Type="uint8" PhysicalSizeX="0.25" '
            'PhysicalSizeY="0.25"/></Image></OME>'
        )
        whole = make_pyramid(size=(256, 128), factors=(1,), description=description)
    elif seed == "big":
        whole = make_pyramid(size=(256, 128), factors=(1, 2), bigtiff=True, compression="jpeg")
    else:
        whole = formats_folder / "openslide-fixtures" / seed
    places = header_bytes(whole)
    rng = np.random.default_rng(20240404)
    read = 0
    tracemalloc.start()
    try:
        for number in range(MUTATIONS // 4):
            path = tmp_path / f"m{number}{whole.suffix}"
            path.write_bytes(mutate(whole.read_bytes(), places, rng))
            read += try_out(path, tmp_path / "s.parquet")
            path.unlink()
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    # Some must survive, or nothing but the first check was tried.
    assert 0 < read < MUTATIONS // 4
