"""The virtual Zarr over formats that are not TIFF files with tiles of their own."""

from pathlib import Path

import numpy as np
import pytest

from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import virtual


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("dicom-CMU-1-Small-Region", "pydicom"),
        ("fluorescence-DAPI.ndpi", "openslide"),
        ("CMU-1-Small-Region.webp.tiff", "imagecodecs"),
    ],
)
def test_every_level_equals_the_reader(
    formats_folder: Path, tmp_path: Path, name: str, extra: str
) -> None:
    pytest.importorskip(extra)
    index.index([str(formats_folder / name)], tmp_path / "s.parquet", mpp_overrides=["0.5"])
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    group = virtual.open(tmp_path / "s.parquet")[slide.slide]
    for number, level in enumerate(slide.levels):
        x, y = level.width_px // 4, level.height_px // 4
        w, h = min(300, level.width_px - x), min(280, level.height_px - y)
        region = found.reader.read_region(slide, x, y, number, w, h)
        chunk = group[f"{number}"][:, y : y + h, x : x + w]
        np.testing.assert_array_equal(chunk.transpose(1, 2, 0), region)
