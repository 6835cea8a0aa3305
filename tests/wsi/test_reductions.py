"""Patches at 2, 4 and 8 times the level's mpp: exact means, and libjpeg's scaled transform."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import ramps
from PIL import Image
from ramps import MakePyramid

from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import pyramid, regions, resample, roi


@pytest.fixture(scope="module")
def tissue(
    slides_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pyramid.Slide, Path]:
    """A real slide with its finest level only, and its tile table."""
    out = tmp_path_factory.mktemp("tissue") / "s.parquet"
    index.index([str(slides_folder / "BS27_duodenum_HE_40x_ycc422.svs")], out)
    found = cohort.open_cohort(out)
    (slide,) = found.slides
    return dataclasses.replace(slide, levels=slide.levels[:1]), found.table.file("tiles")


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The scales at which tiles are decoded."""
    seen: list[int] = []
    read = regions.read

    def spy(table, slide, level, windows, scale=1):
        seen.append(scale)
        return read(table, slide, level, windows, scale)

    monkeypatch.setattr(regions, "read", spy)
    return seen


def mean(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width = (side // factor for side in pixels.shape[:2])
    return pixels.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((found - expected) ** 2))))


@pytest.mark.parametrize("way", ["extension", "whole"])
@pytest.mark.parametrize(("factor", "least_db"), [(2, 48.5), (4, 43), (8, 39)])
def test_the_scaled_transform_is_close_to_the_area_mean(
    tissue, scales, monkeypatch: pytest.MonkeyPatch, factor: int, least_db: float, way: str
) -> None:
    monkeypatch.setattr(roi, "AVAILABLE", roi.AVAILABLE and way == "extension")
    slide, table = tissue
    reader = pyramid.Reader(table)
    for left, top in ((5000, 5000), (13000, 6000)):
        fine = reader.read_region(slide, left, top, 0, 128 * factor, 128 * factor)
        expected = mean(fine, factor)
        assert expected.std() > 10
        found = reader.read_patch(slide, left, top, factor * slide.mpp, 128)
        assert scales.pop() == factor
        assert psnr(found, expected) > least_db


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_without_it_whole_reductions_are_the_area_mean(tissue, scales, factor: int) -> None:
    slide, table = tissue
    reader = pyramid.Reader(table, idct=False)
    fine = reader.read_region(slide, 10001, 6003, 0, 64 * factor, 64 * factor)
    found = reader.read_patch(slide, 10001, 6003, factor * slide.mpp, 64)
    assert set(scales) == {1}
    expected = mean(fine, factor)
    assert expected.std() > 10
    # Fixed-point division by 9 may turn an exact 5/9 down.
    assert np.abs(found - expected).max() <= (5.01 / 9 if factor == 3 else 0.5)


def test_half_pixels_of_the_scaled_level_are_not_interpolated(tissue, scales) -> None:
    slide, table = tissue
    reader = pyramid.Reader(table)
    for x, y in ((10001, 6000), (10000, 6001), (10001, 6001)):
        fine = reader.read_region(slide, x, y, 0, 512, 512)
        found = reader.read_patch(slide, x, y, 2 * slide.mpp, 256)
        assert scales[-1] == 1
        assert np.abs(found - mean(fine, 2)).max() <= 0.5


@pytest.mark.parametrize(
    ("ratio", "scale"),
    [(1, 1), (1.5, 1), (1.98, 1), (2.02, 1), (3.9, 1), (3.95, 2), (6, 2), (8, 4)],
)
def test_a_twofold_reduction_is_left_to_the_filter(
    tissue, scales, ratio: float, scale: int
) -> None:
    slide, table = tissue
    found = pyramid.Reader(table).read_patch(slide, 5001, 5003, ratio * slide.mpp, 100)
    assert scales.pop() == scale
    side = 100 * ratio
    fine = pyramid.Reader(table).read_region(slide, 4985, 4987, 0, 960, 960)
    expected = Image.fromarray(fine).resize(
        (100, 100), Image.Resampling.HAMMING, box=(16, 16, 16 + side, 16 + side)
    )
    assert psnr(found, np.asarray(expected).astype(float)) > 44 or ratio < 1.4


def test_what_lies_beyond_the_edge_in_a_tile_is_never_mixed_in(
    make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    """Edge tiles are full size, and what they hold beyond the slide's edge is arbitrary."""

    def dark(size: tuple[int, int], factor: int) -> np.ndarray:
        return np.full((size[1] // factor, size[0] // factor, 3), 60, np.uint8)

    path = make_pyramid(
        size=(301, 203),
        factors=(1,),
        pattern=dark,
        compression="jpeg",
        compressionargs={"level": 95},
    )
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    plain = pyramid.Reader(found.table.file("tiles"), idct=False)
    for factor, x, y in itertools.product((2, 4, 8), (0, 200, 264), (0, 136, 160)):
        place = (slide, x, y, factor * slide.mpp, 32)
        patch = found.reader.read_patch(*place).astype(int)
        assert np.abs(patch - plain.read_patch(*place)).max() <= 2
        assert patch[0, 0].tolist() == [60, 60, 60]


def test_a_reduced_patch_is_where_it_was_asked_for(
    make_pyramid: MakePyramid, tmp_path: Path, scales
) -> None:
    options = {"compression": "jpeg", "compressionargs": {"level": 100, "outcolorspace": "rgb"}}
    path = make_pyramid(factors=(1,), pattern=ramps.wave, **options)
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    seen = set()
    for factor, x in itertools.product((2, 2.2, 3.95, 4, 6.5, 8), (128.0, 130.0, 133.25)):
        patch = found.reader.read_patch(slide, x, 64.0, factor * 0.25, 64)
        seen.add(scales.pop())
        steps = x + (np.arange(64) + 0.5) * factor
        assert ramps.shift_px0(patch[..., 0].mean(axis=0), steps) == pytest.approx(0, abs=0.06)
    assert seen == {1, 2, 4, 8}


def test_a_patch_of_a_huge_part_of_a_level_is_read_in_bands(
    make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_pyramid(factors=(1,))
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    place = (slide, -20.0, 3.0, 3.1, 60)
    whole = found.reader.read_patch(*place).astype(int)
    monkeypatch.setattr(pyramid, "MAX_BAND_PIXELS", 20_000)
    assert np.abs(found.reader.read_patch(*place) - whole).max() <= 1
    (pixels, failures) = found.reader.read_patches([pyramid.Request(*place)])
    assert not failures
    assert np.abs(pixels[0] - whole).max() <= 1


@pytest.mark.parametrize(
    ("mpp", "finer", "closest"),
    [
        (0.1, 0, 0),
        (0.25, 0, 0),
        (0.34, 0, 0),
        (0.36, 0, 1),
        (0.5, 1, 1),
        (0.7, 1, 1),
        (0.72, 1, 2),
        (1.0, 2, 2),
        (9.0, 2, 2),
    ],
)
def test_the_level_of_either_policy(
    make_pyramid: MakePyramid, tmp_path: Path, mpp: float, finer: int, closest: int
) -> None:
    path = make_pyramid()
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    assert slide.level_for(mpp) == finer
    assert slide.level_for(mpp, "closest") == closest
    reader = pyramid.Reader(found.table.file("tiles"), policy="closest")
    patch = reader.read_patch(slide, 200, 100, mpp, 32)
    level = slide.levels[closest]
    cut = resample.cut(
        level,
        tuple(at / level.scale[0] for at in (200, 100, 200 + 128 * mpp, 100 + 128 * mpp)),
        32,
        32,
    )
    region = reader.read_region(slide, cut.left, cut.top, closest, cut.width, cut.height)
    np.testing.assert_array_equal(patch, cut.finish(region))
