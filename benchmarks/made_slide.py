"""A large slide in the manner of Aperio, made of real tissue, for benchmarks.

python benchmarks/made_slide.py OUT.svs [--side 40000] [--slide FILE]

256 px tiles, JPEG quality 70, chroma 4:2:2, 0.25 um/px, levels 1 and 4. The tiles are cut from the
tissue of another slide, encoded anew, and laid out at random; 512 different ones repeat.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from pathfm_cli.data import cohort, index

SLIDE = Path(__file__).parents[2] / "shared" / "data" / "slides" / "BS27_duodenum_HE_40x_ycc422.svs"
TILE_PX = 256
DIFFERENT = 512
DESCRIPTION = "Aperio Image Library made for benchmarks\r\n{side}x{side}|AppMag = 40|MPP = 0.25"


def opened(slide: Path, folder: Path) -> cohort.Cohort:
    """Index one slide."""
    out = folder / f"{slide.stem}.parquet"
    index.index([str(slide)], out)
    return cohort.open_cohort(out)


def tissue_tiles(slide: Path, count: int) -> list[bytes]:
    """JPEG tiles of tissue: where the thumbnail is coloured."""
    with tempfile.TemporaryDirectory() as folder:
        found = opened(slide, Path(folder))
        (origin,) = found.slides
        small = found.reader.read_thumbnail(origin, 16 * origin.mpp).astype(int)
        rows, columns = np.nonzero(small.max(axis=2) - small.min(axis=2) > 40)
        chosen = np.random.default_rng(0).integers(0, len(rows), count)
        tiles = []
        for row, column in zip(rows[chosen].tolist(), columns[chosen].tolist(), strict=True):
            x, y = column * 16 - TILE_PX // 2, row * 16 - TILE_PX // 2
            pixels = found.reader.read_region(origin, x, y, 0, TILE_PX, TILE_PX)
            tiles.append(simplejpeg.encode_jpeg(pixels, 70, "RGB", "422"))
    return tiles


def build(out: Path, side_px: int, slide: Path = SLIDE) -> None:
    """Write the slide."""
    tiles = tissue_tiles(slide, DIFFERENT)
    random = np.random.default_rng(1)
    with tifffile.TiffWriter(out, bigtiff=True) as file:
        for factor in (1, 4):
            side = side_px // factor
            file.write(
                _laid_out(tiles, random, (-(-side // TILE_PX)) ** 2),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 1),
                compression="jpeg",
                description=DESCRIPTION.format(side=side),
                metadata=None,
            )


def _laid_out(tiles: list[bytes], random: np.random.Generator, count: int) -> Iterator[bytes]:
    for number in random.integers(0, len(tiles), count).tolist():
        yield tiles[number]


def main() -> None:
    """Build one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=40_000, help="width and height, px")
    parser.add_argument("--slide", type=Path, default=SLIDE, help="where the tissue comes from")
    options = parser.parse_args()
    build(options.out, options.side, options.slide)


if __name__ == "__main__":
    main()
