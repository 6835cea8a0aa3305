"""Pixels at any position and resolution, against a formula on a ramp; files that are damaged."""

import pickle
from concurrent import futures
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import ramps
import tifffile
from PIL import Image
from ramps import MakePyramid, ramp
from reading import opened

from pathfm_cli import errors
from pathfm_cli.data import cohort
from pathfm_cli.wsi import pyramid, regions, store


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
