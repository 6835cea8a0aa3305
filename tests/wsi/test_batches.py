"""Patches of a batch: the pixels of single patches, each tile read once, failures apart."""

import gc
import pickle
import weakref
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ramps import MakePyramid

from pathfm_cli import errors
from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import pyramid, roi, store


def requests(found: cohort.Cohort, count: int) -> list[pyramid.Request]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        slide = found.slides[int(rng.integers(len(found.slides)))]
        mpp = slide.mpp * float(rng.choice([1, 1, 2, 2.3, 4]))
        x, y = (int(rng.integers(-40, side)) for side in (slide.width_px0, slide.height_px0))
        made.append(pyramid.Request(slide, x, y, mpp, 96))
    return made


@pytest.mark.parametrize("threads", [0, 3])
def test_a_batch_is_its_patches(real: cohort.Cohort, threads: int) -> None:
    wanted = requests(real, 60)
    pool = futures.ThreadPoolExecutor(threads) if threads else None
    pixels, failures = real.reader.read_patches(wanted, pool)
    assert failures == {}
    assert pixels.shape == (60, 96, 96, 3)
    for found, request in zip(pixels, wanted, strict=True):
        place = (request.x_px0, request.y_px0, request.mpp, request.size_px)
        np.testing.assert_array_equal(found, real.reader.read_patch(request.slide, *place))


def test_a_shared_tile_is_fetched_and_decoded_once(
    make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_pyramid(factors=(1,))
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    # A window of 4 x 4 tiles cut into 16 patches that are linked by shared tiles.
    wanted = [
        pyramid.Request(slide, 40 + 48 * column, 104 + 48 * row, 0.25, 48)
        for row in range(4)
        for column in range(4)
    ]
    ranges, decoded = [], []
    read, decode = store.Local.read, roi.decode_region
    monkeypatch.setattr(
        store.Local, "read", lambda self, *asked: ranges.append(asked) or read(self, *asked)
    )
    monkeypatch.setattr(
        roi, "decode_region", lambda *args: decoded.append(args[0]) or decode(*args)
    )
    pixels, failures = found.reader.read_patches(wanted)
    assert not failures
    assert len(decoded) == len(set(decoded)) == 16
    # Four tiles of each of four rows lie side by side.
    assert len(ranges) == 4
    monkeypatch.undo()
    for patch, request in zip(pixels, wanted, strict=True):
        place = (int(request.x_px0), int(request.y_px0), 0, 48, 48)
        np.testing.assert_array_equal(patch, found.reader.read_region(slide, *place))


def test_a_corrupt_tile_fails_only_the_patches_that_show_it(
    make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    path = make_pyramid(factors=(1,))
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[17]  # the second tile of the second row
    with path.open("r+b") as raw:
        raw.seek(offset + 8)
        raw.write(b"\xff" * 20)
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    places = [(0, 64), (100, 90), (32, 32), (0, 0), (130, 70), (600, 600)]
    wanted = [pyramid.Request(slide, x, y, 0.25, 40) for x, y in places]
    pixels, failures = found.reader.read_patches(wanted)
    assert sorted(failures) == [1, 2]
    for number, error in failures.items():
        assert "ramp: tile 17 of level 0 is corrupt" in str(error)
        assert (pixels[number] == 255).all()
    for number in (0, 3, 4, 5):
        x, y = places[number]
        np.testing.assert_array_equal(
            pixels[number], found.reader.read_region(slide, x, y, 0, 40, 40)
        )


def test_a_batch_is_freed_when_it_is_dropped(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    """No cycle keeps pixels until the garbage collector comes: that is gigabytes in a long run."""
    paths = [make_pyramid(name, factors=(1,)) for name in ("a.tif", "b.tif")]
    index.index([str(path) for path in paths], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    paths[1].unlink()
    wanted = [pyramid.Request(slide, x, 0, 0.3, 32) for slide in found.slides for x in (0, 9, 300)]
    gc.disable()
    try:
        for pool in (None, futures.ThreadPoolExecutor(2)):
            pixels, failures = found.reader.read_patches(wanted, pool)
            assert sorted(failures) == [3, 4, 5]
            held = weakref.ref(pixels)
            del pixels
            if pool:
                pool.shutdown()
            assert held() is None
    finally:
        gc.enable()


def test_a_slide_that_is_gone_fails_only_its_patches(
    make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    paths = [make_pyramid(name, factors=(1,)) for name in ("a.tif", "b.tif")]
    index.index([str(path) for path in paths], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    paths[0].unlink()
    wanted = [pyramid.Request(slide, 10, 10, 0.25, 16) for slide in (*found.slides, *found.slides)]
    pixels, failures = found.reader.read_patches(wanted)
    assert sorted(failures) == [0, 2]
    assert all(isinstance(error, errors.SlideError) for error in failures.values())
    np.testing.assert_array_equal(pixels[1], pixels[3])


def test_batches_that_are_odd(real: cohort.Cohort) -> None:
    pixels, failures = real.reader.read_patches([])
    assert len(pixels) == 0
    assert failures == {}
    slide = real.slides[0]
    mixed = [pyramid.Request(slide, 0, 0, 1.0, size) for size in (8, 9)]
    with pytest.raises(ValueError, match="one size"):
        real.reader.read_patches(mixed)


def test_a_copied_reader_keeps_its_options(real: cohort.Cohort) -> None:
    reader = pyramid.Reader(real.table.file("tiles"), policy="closest", idct=False)
    again = pickle.loads(pickle.dumps(reader))
    assert again.__getstate__() == reader.__getstate__()


def test_patches_of_two_resolutions_may_share_tiles(
    make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    """At 0.5 um/px tiles are decoded at half their size: not those of the patches at 0.25."""
    path = make_pyramid(factors=(1,), compression="jpeg")
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    places = [(0, 0, 0.25), (0, 0, 0.5), (64, 64, 0.25), (64, 64, 0.5), (32, 32, 1.0)]
    wanted = [pyramid.Request(slide, x, y, mpp, 64) for x, y, mpp in places]
    pixels, failures = found.reader.read_patches(wanted)
    assert not failures
    for patch, (x, y, mpp) in zip(pixels, places, strict=True):
        np.testing.assert_array_equal(patch, found.reader.read_patch(slide, x, y, mpp, 64))
