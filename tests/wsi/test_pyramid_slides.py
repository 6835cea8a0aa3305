"""Pixels of real slides against openslide and tifffile."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from reading import opened

from pathfm_cli import errors
from pathfm_cli.data import cohort, index


def by_openslide(slide: openslide.OpenSlide, x: int, y: int, level: int, size) -> np.ndarray:
    rgba = np.asarray(slide.read_region((x, y), level, size)).astype(int)
    return np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])


def test_level_0_equals_openslide_on_every_real_slide(real: cohort.Cohort) -> None:
    assert len(real.slides) == 12
    for slide in real.slides:
        w, h = slide.width_px0, slide.height_px0
        places = [
            *((0, 0), (-37, -53), (w - 100, h - 120), (w // 2 + 1, h // 2 + 1)),
            *((w // 3, h - 64), (w - 64, h // 3), (w + 10, 5)),
        ]
        with openslide.OpenSlide(slide.uri) as theirs:
            for x, y in places:
                ours = real.reader.read_region(slide, x, y, 0, 333, 290).astype(int)
                difference = np.abs(ours - by_openslide(theirs, x, y, 0, (333, 290))).max()
                assert difference <= 2, (slide.slide, x, y)


def test_coarser_levels_equal_openslide_at_aligned_coordinates(real: cohort.Cohort) -> None:
    compared = 0
    for slide in real.slides:
        with openslide.OpenSlide(slide.uri) as theirs:
            for level in range(1, theirs.level_count):
                plane = slide.levels[level]
                size = (min(700, plane.width_px), min(600, plane.height_px))
                ours = real.reader.read_region(slide, 0, 0, level, *size).astype(int)
                difference = np.abs(ours - by_openslide(theirs, 0, 0, level, size)).max()
                assert difference <= 2, (slide.slide, level)
                compared += 1
    assert compared >= 20


@pytest.mark.slow(50)
def test_every_pixel_of_every_file_equals_openslide(
    slides_folder: Path, formats_folder: Path, tmp_path: Path
) -> None:
    """Level 0 in strips; coarser levels from their corner, the only place that is surely aligned.

    Elsewhere, and beyond 4096 px, openslide converts coordinates by a ratio of sizes such as
    4.0005 and interpolates.
    """
    folders = (slides_folder, formats_folder, formats_folder / "openslide-fixtures")
    paths = [path for folder in folders for path in sorted(folder.glob("*.*"))]
    paths = [path for path in paths if _tiff_for_openslide(path)]
    index.index([str(path) for path in paths], tmp_path / "s.parquet", mpp_overrides=["1.0"])
    found = cohort.open_cohort(tmp_path / "s.parquet")
    compared = 0
    for slide in found.slides:
        with openslide.OpenSlide(slide.uri) as theirs:
            for number in range(theirs.level_count):
                plane = slide.levels[number]
                most = 4096 if number else 10**6
                width, height = min(plane.width_px, most), min(plane.height_px, most)
                # Whole rows of tiles, so that none is decoded twice.
                rows = max(1, 1024 // plane.tile_height_px)
                step = rows * plane.tile_height_px if number == 0 else height
                for top in range(0, height, step):
                    size = (width, min(step, height - top))
                    ours = found.reader.read_region(slide, 0, top, number, *size)
                    region = theirs.read_region((0, top), number, size)
                    rgb, alpha = np.asarray(region.convert("RGB")), region.getchannel("A")
                    if alpha.getextrema()[0] == 0:
                        rgb = np.where(np.asarray(alpha)[..., None] == 0, 255, rgb)
                    difference = largest_difference(ours, rgb)
                    assert difference <= 2, (slide.slide, number, top)
                    compared += 1
    assert compared >= 130


def _tiff_for_openslide(path: Path) -> bool:
    """Whether openslide reads its first level as a TIFF of ours."""
    if openslide.OpenSlide.detect_format(path) not in ("aperio", "generic-tiff"):
        return False
    try:
        with openslide.OpenSlide(path) as slide:
            slide.read_region((0, 0), 0, (9, 9))
    except openslide.OpenSlideError:
        return False
    return True


def largest_difference(left: np.ndarray, right: np.ndarray) -> int:
    """Largest difference of two uint8 arrays."""
    return int((np.maximum(left, right) - np.minimum(left, right)).max())


def test_whole_coarsest_levels_equal_tifffile(real: cohort.Cohort) -> None:
    for slide in real.slides:
        number = len(slide.levels) - 1
        plane = slide.levels[number]
        ours = real.reader.read_region(slide, 0, 0, number, plane.width_px, plane.height_px)
        with tifffile.TiffFile(slide.uri) as file:
            pages = [page.aspage() for page in file.pages]
            pages += [page.aspage() for parent in pages for page in parent.pages or []]
            (page,) = (p for p in pages if p.is_tiled and p.shape == ours.shape)
            assert np.abs(ours - page.asarray().astype(int)).max() <= 2, slide.slide


@pytest.mark.parametrize("name", ["small.svs", "boxes.tiff"])
def test_openslides_own_fixtures(formats_folder: Path, tmp_path: Path, name: str) -> None:
    path = formats_folder / "openslide-fixtures" / name
    slide, reader = opened(path, tmp_path, mpp_overrides=["0.5"])
    with openslide.OpenSlide(path) as theirs:
        assert theirs.level_count == len(slide.levels)
        for level, plane in enumerate(slide.levels):
            size = (plane.width_px, plane.height_px)
            ours = reader.read_region(slide, 0, 0, level, *size).astype(int)
            assert np.abs(ours - by_openslide(theirs, 0, 0, level, size)).max() <= 2


def test_webp_and_jpeg_copies_of_one_slide_agree(
    formats_folder: Path, slides_folder: Path, tmp_path: Path
) -> None:
    paths = [
        slides_folder / "CMU-1-Small-Region.svs",
        formats_folder / "CMU-1-Small-Region.jpeg.tiff",
        formats_folder / "CMU-1-Small-Region.webp.tiff",
    ]
    index.index([str(path) for path in paths], tmp_path / "s.parquet", mpp_overrides=["0.499"])
    found = cohort.open_cohort(tmp_path / "s.parquet")
    means = []
    for slide in found.slides:
        region = found.reader.read_region(slide, 700, 900, 0, 480, 400)
        means.append(region.reshape(25, 16, 30, 16, 3).mean(axis=(1, 3)))
    assert means[0].std() > 20
    for other in means[1:]:
        assert np.abs(means[0] - other).mean() < 2


def test_unreadable_tiles_name_slide_level_and_tile(formats_folder: Path, tmp_path: Path) -> None:
    path = formats_folder / "openslide-fixtures" / "unreadable.svs"
    slide, reader = opened(path, tmp_path)
    with pytest.raises(errors.SlideError, match="unreadable: tile 0 of level 0 is corrupt"):
        reader.read_region(slide, 0, 0, 0, 16, 16)


# Synthetic pyramids: see ramps.py.
