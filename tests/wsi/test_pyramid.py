"""Pixels: against openslide and tifffile on real slides, against a formula on a ramp."""

import pickle
from concurrent import futures
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import ramps
import tifffile
from PIL import Image
from ramps import MakePyramid, ramp

from pathfm_cli import errors
from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import pyramid, regions, store


def opened(path: Path, folder: Path, **options) -> tuple[pyramid.Slide, pyramid.Reader]:
    index.index([str(path)], folder / "s.parquet", **options)
    found = cohort.open_cohort(folder / "s.parquet")
    return found.slides[0], found.reader


@pytest.fixture(scope="module")
def real(slides_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> cohort.Cohort:
    out = tmp_path_factory.mktemp("real") / "s.parquet"
    index.index([str(slides_folder)], out, mpp_overrides=["1.0"])
    return cohort.open_cohort(out)


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


@pytest.mark.slow
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
                step = 1024 if number == 0 else height
                for top in range(0, height, step):
                    size = (width, min(step, height - top))
                    ours = found.reader.read_region(slide, 0, top, number, *size)
                    region = theirs.read_region((0, top), number, size)
                    alpha = np.asarray(region.getchannel("A"))
                    rgb = np.where(alpha[..., None] == 0, 255, np.asarray(region.convert("RGB")))
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


@pytest.mark.parametrize("mpp", [0.25, 0.27, 0.4, 0.5, 0.55, 0.75, 1.0, 1.7, 0.22])
@pytest.mark.parametrize("corner", [(256.0, 192.0), (256.5, 191.25), (130.3, 301.7)])
def test_a_patch_is_where_it_was_asked_for(
    make_pyramid: MakePyramid, tmp_path: Path, mpp: float, corner: tuple[float, float]
) -> None:
    slide, reader = opened(make_pyramid(pattern=ramps.wave), tmp_path)
    patch = reader.read_patch(slide, *corner, mpp, 64)
    assert patch.shape == (64, 64, 3)
    assert patch.dtype == np.uint8
    steps = (np.arange(64) + 0.5) * mpp / 0.25
    # Both halves lie right, so the scale is right too.
    for half in (slice(0, 32), slice(32, 64)):
        columns = patch[..., 0].mean(axis=0)[half]
        rows = patch[..., 1].mean(axis=1)[half]
        assert ramps.shift_px0(columns, corner[0] + steps[half]) == pytest.approx(0, abs=0.05)
        assert ramps.shift_px0(rows, corner[1] + steps[half]) == pytest.approx(0, abs=0.05)
    assert (patch[..., 2] == 77).all()


@pytest.mark.parametrize(
    ("mpp", "level"),
    [(0.1, 0), (0.25, 0), (0.4, 0), (0.491, 1), (0.5, 1), (0.9, 1), (0.985, 2), (1.0, 2), (8, 2)],
)
def test_the_level_is_finer_or_equal(
    make_pyramid: MakePyramid, tmp_path: Path, mpp: float, level: int
) -> None:
    slide, _ = opened(make_pyramid(), tmp_path)
    assert slide.level_for(mpp) == level


@pytest.mark.parametrize(("level", "mpp", "x", "y"), [(0, 0.25, 37, 101), (1, 0.5, 38, 100)])
def test_whole_pixels_are_copied(
    make_pyramid: MakePyramid, tmp_path: Path, level: int, mpp: float, x: int, y: int
) -> None:
    slide, reader = opened(make_pyramid(), tmp_path)
    factor = 2**level
    expected = ramp((1024, 768), factor)[y // factor :, x // factor :][:90, :90]
    np.testing.assert_array_equal(reader.read_patch(slide, x, y, mpp, 90), expected)


def test_shrinking_tissue_is_close_to_the_area_mean(real: cohort.Cohort) -> None:
    slide = next(slide for slide in real.slides if slide.slide.startswith("BS27"))
    left, top = 8000, 5000
    fine = real.reader.read_region(slide, left, top, 0, 512, 512)
    expected = fine.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    assert expected.std() > 20
    found = real.reader.read_patch(slide, left, top, 2 * slide.mpp, 256)
    error = np.mean((found - expected) ** 2)
    assert 10 * np.log10(255**2 / error) > 45


@pytest.mark.parametrize("mpp", [0.25, 0.3, 0.4, 0.49])
def test_margins_leave_no_seam(make_pyramid: MakePyramid, tmp_path: Path, mpp: float) -> None:
    slide, reader = opened(make_pyramid(pattern=ramps.noise), tmp_path)
    corner = 40 * mpp / 0.25
    large = reader.read_patch(slide, 100.5, 100.5, mpp, 120).astype(int)
    part = reader.read_patch(slide, 100.5 + corner, 100.5 + corner, mpp, 60)
    assert np.abs(large[40:100, 40:100] - part).max() <= 1


def test_white_outside(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    slide, reader = opened(make_pyramid(), tmp_path)
    region = reader.read_region(slide, -10, 760, 0, 30, 20)
    assert (region[:, :10] == 255).all()
    assert (region[8:] == 255).all()
    np.testing.assert_array_equal(region[:8, 10:], ramp((1024, 768), 1)[760:, :20])
    assert (reader.read_patch(slide, 2000, 0, 0.5, 32) == 255).all()
    assert (reader.read_patch(slide, -500.5, -500.5, 0.3, 32) == 255).all()


@pytest.mark.parametrize("mpp", [0.25, 0.3, 1.0, 4.0, 300.0])
def test_a_thumbnail_covers_the_slide(
    make_pyramid: MakePyramid, tmp_path: Path, mpp: float
) -> None:
    slide, reader = opened(make_pyramid(), tmp_path)
    picture = reader.read_thumbnail(slide, mpp)
    width, height = max(1, round(256 / mpp)), max(1, round(192 / mpp))
    assert picture.shape == (height, width, 3)
    means = picture.mean(axis=(0, 1))
    assert means == pytest.approx((127.5, 127.5, 77), abs=1)
    assert (picture[..., 2] == 77).all()


def test_a_thumbnail_in_bands_is_the_same(
    make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, reader = opened(make_pyramid(size=(1000, 777)), tmp_path)
    whole = reader.read_thumbnail(slide, 1.3)
    monkeypatch.setattr(pyramid, "MAX_BAND_PIXELS", 5000)
    assert np.abs(reader.read_thumbnail(slide, 1.3).astype(int) - whole).max() <= 1


def test_a_thumbnail_that_is_too_large(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    slide, reader = opened(make_pyramid(), tmp_path)
    with pytest.raises(errors.SlideError, match="too large"):
        reader.read_thumbnail(slide, 0.01)


def test_a_thumbnail_does_not_touch_level_0(
    make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, reader = opened(make_pyramid(), tmp_path)
    levels = []
    read = regions.read

    def spy(table, slide, level, windows, scale=1):
        levels.append(level)
        return read(table, slide, level, windows, scale)

    monkeypatch.setattr(regions, "read", spy)
    reader.read_thumbnail(slide, 1.5)
    assert levels == [2]


@pytest.mark.parametrize(
    ("size_px0", "size_px", "expected"),
    [
        ((17707, 11341), (1106, 708), (16, 16)),
        ((17707, 11341), (1107, 709), (16, 16)),
        ((16732, 19685), (522, 615), (32, 32)),
        ((1000, 1000), (400, 400), (2.5, 2.5)),
        ((1000, 500), (330, 166), (1000 / 330, 500 / 166)),
        ((100, 100), (100, 100), (1, 1)),
    ],
)
def test_the_scale_of_a_level(size_px0, size_px, expected) -> None:
    assert pyramid.grid_scale(size_px0, size_px) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "level"),
    [("TCGA-CR-7395-01A-01-TS1", 1), ("BS27_duodenum_HE_40x_ycc422", 2)],
)
def test_the_whole_factor_fits_real_levels_better_than_the_ratio(
    real: cohort.Cohort, name: str, level: int
) -> None:
    """At the far edge, level 0 shrunk by the factor looks like the level; by the ratio less so."""
    slide = next(slide for slide in real.slides if slide.slide == name)
    plane = slide.levels[level]
    x, y = plane.width_px - 204, plane.height_px // 2 - 100
    expected = real.reader.read_region(slide, x, y, level, 200, 200).astype(float)

    def error(scale_x: float, scale_y: float) -> float:
        left, top = int(x * scale_x) - 16, int(y * scale_y) - 16
        region = real.reader.read_region(
            slide, left, top, 0, int(200 * scale_x) + 64, int(200 * scale_y) + 64
        )
        a, b = x * scale_x - left, y * scale_y - top
        small = Image.fromarray(region).resize(
            (200, 200), Image.Resampling.HAMMING, box=(a, b, a + 200 * scale_x, b + 200 * scale_y)
        )
        return float(np.mean((np.asarray(small) - expected) ** 2))

    ratio = (slide.width_px0 / plane.width_px, slide.height_px0 / plane.height_px)
    assert error(*plane.scale) < 0.5 * error(*ratio)


# Files that go wrong.


def patched(path: Path, tag: int, page: int, tile: int, value: int) -> None:
    """Overwrite one entry of a tag's array in a TIFF."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        entry = file.pages[page].tags[tag]
        values = list(entry.value)
        values[tile] = value
        entry.overwrite(values)


def test_missing_tiles_are_white(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    path = make_pyramid()
    for tile in (0, 17):
        patched(path, 325, 0, tile, 0)
    patched(path, 324, 0, 17, 0)
    slide, reader = opened(path, tmp_path)
    expected = ramp((1024, 768), 1)
    expected[:64, :64] = 255
    expected[64:128, 64:128] = 255
    np.testing.assert_array_equal(reader.read_region(slide, 0, 0, 0, 1024, 768), expected)


def test_a_tile_beyond_4_gib(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    path = make_pyramid(bigtiff=True, factors=(1,))
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    with path.open("r+b") as raw:
        raw.seek(offset)
        data = raw.read(count)
        raw.seek(offset)
        raw.write(bytes(count))
        raw.seek(5 << 30)  # the file is sparse: it takes no room
        raw.write(data)
    patched(path, 324, 0, 5, 5 << 30)
    slide, reader = opened(path, tmp_path)
    expected = ramp((1024, 768), 1)[:64, 300:400]
    np.testing.assert_array_equal(reader.read_region(slide, 300, 0, 0, 100, 64), expected)


def test_a_corrupt_tile_is_named_and_others_read_on(
    make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    path = make_pyramid()
    with tifffile.TiffFile(path) as file:
        offset = file.pages[1].dataoffsets[9]
    with path.open("r+b") as raw:
        raw.seek(offset + 8)
        raw.write(b"\xff" * 20)
    slide, reader = opened(path, tmp_path)
    with pytest.raises(errors.SlideError, match="ramp: tile 9 of level 1 is corrupt"):
        reader.read_region(slide, 80, 80, 1, 10, 10)
    expected = ramp((1024, 768), 2)[:64, :512]
    np.testing.assert_array_equal(reader.read_region(slide, 0, 0, 1, 512, 64), expected)


def test_jpeg_2000_33003_and_33005(tmp_path: Path) -> None:
    """The same image stored as YCbCr (33003) and as RGB (33005) reads the same."""
    pixels = ramp((128, 64), 1)
    y = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    cb = 128 + (pixels[..., 2] - y) / 1.772
    cr = 128 + (pixels[..., 0] - y) / 1.402
    ycc = np.rint(np.stack([y, cb, cr], -1)).clip(0, 255).astype(np.uint8)
    for number, code, stored in ((0, 33003, ycc), (1, 33005, pixels)):
        path = tmp_path / f"{number}.svs"
        tile = imagecodecs.jpeg2k_encode(stored, codecformat="j2k", reversible=True, mct=False)
        tifffile.imwrite(
            path,
            iter([tile]),
            shape=pixels.shape,
            dtype=np.uint8,
            tile=(64, 128),
            photometric="rgb",
            compression=code,
            metadata=None,
            description="Aperio Image Library v1\r\n128x64|MPP = 0.25",
        )
        folder = tmp_path / str(number)
        slide, reader = opened(path, folder)
        assert slide.levels[0].codec == ("jp2k-ycbcr", "jp2k-rgb")[number]
        found = reader.read_region(slide, 0, 0, 0, 128, 64).astype(int)
        assert np.abs(found - pixels).max() <= 2


def test_a_file_that_changed_is_refused(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    path = make_pyramid()
    slide, reader = opened(path, tmp_path)
    reader.read_region(slide, 0, 0, 0, 8, 8)
    data = path.read_bytes()
    path.write_bytes(data + b"\0")
    store.forget(str(path))
    with pytest.raises(errors.SlideError, match="has changed since it was indexed"):
        reader.read_region(slide, 0, 0, 0, 8, 8)


def test_a_file_indexed_again_is_read_anew(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    path = make_pyramid()
    slide, reader = opened(path, tmp_path)
    reader.read_region(slide, 0, 0, 0, 8, 8)
    fresh = make_pyramid("other.tif", size=(512, 512), factors=(1,))
    fresh.replace(path)
    slide, reader = opened(path, tmp_path)
    np.testing.assert_array_equal(
        reader.read_region(slide, 0, 0, 0, 8, 8), ramp((512, 512), 1)[:8, :8]
    )


def test_a_slide_whose_rows_are_not_in_the_table(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    slide, _ = opened(make_pyramid(), tmp_path)
    opened(make_pyramid("tiny.tif", size=(64, 64), factors=(1,)), tmp_path / "other")
    (other,) = (tmp_path / "other").glob("*.safetensors")
    with pytest.raises(errors.SlideError, match="its tiles are not in"):
        pyramid.Reader(other).read_region(slide, 0, 0, 0, 8, 8)


def _read_in_child(job: tuple[pyramid.Reader, pyramid.Slide]) -> bytes:
    reader, slide = job
    return reader.read_patch(slide, 10, 20, 0.4, 32).tobytes()


def test_reader_and_slides_travel_to_a_spawned_process(
    make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    slide, reader = opened(make_pyramid(), tmp_path)
    expected = reader.read_patch(slide, 10, 20, 0.4, 32).tobytes()
    assert len(pickle.dumps(reader)) < 500
    context = __import__("multiprocessing").get_context("spawn")
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(_read_in_child, (reader, slide)).result() == expected


def test_threads_read_the_same_pixels(real: cohort.Cohort) -> None:
    def read(number: int) -> bytes:
        slide = real.slides[number % len(real.slides)]
        return real.reader.read_patch(slide, 97 * (number % 7), 500, 1.5, 64).tobytes()

    serial = [read(number) for number in range(84)]
    with futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(84))) == serial


def test_rows_that_cannot_be_slides(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    opened(make_pyramid(), tmp_path)
    row = cohort.open_cohort(tmp_path / "s.parquet").table.frame.row(0, named=True)
    for change in ({"error": "bad"}, {"levels": None}, {"mpp": None}, {"mpp": 0.0}):
        with pytest.raises(errors.SlideError):
            pyramid.Slide.from_row({**row, **change})
    for name, value in (("width_px", 5), ("height_px", 0), ("width_px", 9999), ("tiles", 1)):
        levels = [{**row["levels"][0], name: value}]
        with pytest.raises(errors.SlideError, match="damaged"):
            pyramid.Slide.from_row({**row, "levels": levels})
    with pytest.raises(errors.SlideError, match="damaged"):
        pyramid.Slide.from_row({**row, "levels": [{**row["levels"][0], "tile_width_px": 0}]})
