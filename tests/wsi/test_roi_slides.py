"""Rectangles of tiles of real slides, against openslide."""

from pathlib import Path

import numpy as np
import pytest

from pathfm_cli.wsi import roi, store, tiff, vendor

SLIDES = Path(__file__).parents[3] / "shared" / "data" / "slides"


@pytest.mark.parametrize("way", ["extension", "whole"])
@pytest.mark.parametrize(
    "name", ["BS27_duodenum_HE_40x_ycc422", "BS21_stomach_HE_10x_rgbjpeg", "CMU-1-Small-Region"]
)
def test_tiles_of_real_slides_equal_openslide(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "extension" and not roi.AVAILABLE:
        pytest.skip("the extension is not built")
    monkeypatch.setattr(roi, "AVAILABLE", way == "extension")
    openslide = pytest.importorskip("openslide")
    path = SLIDES / f"{name}.svs"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    source = store.Source.open(str(path))
    plane = vendor.describe(source, name).planes[0]
    offsets = plane.directory.array(tiff.TILE_OFFSETS).tolist()
    counts = plane.directory.array(tiff.TILE_BYTE_COUNTS).tolist()
    size = (plane.tile_width_px, plane.tile_height_px)
    columns = plane.width_px // size[0]
    rng = np.random.default_rng(0)
    with openslide.OpenSlide(str(path)) as oracle:
        for _ in range(20):
            column, row = int(rng.integers(columns)), int(rng.integers(plane.height_px // size[1]))
            number = row * -(-plane.width_px // size[0]) + column
            data = source.read(offsets[number], counts[number])
            x, y = (int(rng.integers(0, side - 9)) for side in size)
            w, h = (int(rng.integers(1, side - at)) for side, at in zip(size, (x, y), strict=True))
            out = np.empty((h, w, 3), np.uint8)
            roi.decode_region(data, plane.codec, plane.prefix, *size, x, y, w, h, out)
            place = (column * size[0] + x, row * size[1] + y)
            expected = oracle.read_region(place, 0, (w, h)).convert("RGB")
            assert np.array_equal(out, np.asarray(expected))
