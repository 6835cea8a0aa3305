"""A stream that cannot be, and patches that cannot be read."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from streams import CONFIG, joined, read, same

from pathfm_cli import errors
from pathfm_cli.data import cohort, draw, finders, index, mask, stream


def test_tissue_needs_settings_and_says_so_before_it_reads(demo_tissue: Path) -> None:
    with pytest.raises(errors.UsageError, match="needs to be told how to draw"):
        stream.batches(demo_tissue, None, 0, batch_size=1, first_step=0, steps=1)
    fine = draw.SampleConfig(mpp=(0.1,))
    with pytest.raises(errors.UsageError, match="too coarse"):
        stream.batches(demo_tissue, fine, 0, batch_size=1, first_step=0, steps=1, workers=2)
    with pytest.raises(errors.InputError, match="does not exist"):
        read(Path("nowhere.parquet"))


@pytest.fixture
def half_corrupt(tmp_path: Path) -> Path:
    """Two slides of stained noise; all tiles of the second become garbage after mask."""
    random = np.random.default_rng(0)
    for name in ("good", "bad"):
        pixels = np.clip(random.normal((200, 120, 170), 15, (512, 512, 3)), 0, 255)
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            pixels.astype(np.uint8),
            photometric="rgb",
            tile=(128, 128),
            compression="deflate",
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
        )
    index.index([str(tmp_path / "good.tif"), str(tmp_path / "bad.tif")], tmp_path / "s.parquet")
    mask.mask(tmp_path / "s.parquet", tmp_path / "t.parquet", finders.Otsu())
    spoil(tmp_path / "bad.tif")
    return tmp_path / "t.parquet"


def spoil(path: Path) -> None:
    """Overwrite every tile, and keep size and time of the file."""
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    before = path.stat()
    with path.open("rb+") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\0" * count)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_unreadable_patch_is_replaced_by_the_next_draw_and_told(half_corrupt: Path) -> None:
    opened = cohort.open_cohort(half_corrupt)
    names = [slide.slide for slide in opened.slides]
    sampler = draw.Sampler(opened.table, CONFIG, 9)
    batches = read(half_corrupt)
    assert same(batches, read(half_corrupt, workers=2))
    told = [failure for batch in batches for failure in batch.failed]
    expected = []
    for number in range(12):
        attempt = 0
        while names[sampler.draw(number, attempt).slide] == "bad":
            expected.append((number, "bad"))
            attempt += 1
        patch = sampler.draw(number, attempt)
        pixels = opened.reader.read_patch(
            opened.slides[patch.slide], patch.x_px0, patch.y_px0, patch.mpp, patch.size_px
        )
        assert np.array_equal(joined(batches, "pixels")[number].numpy(), pixels)
    assert [(failure.index, failure.slide) for failure in told] == expected and expected
    assert all("corrupt" in failure.error for failure in told)
    assert {names[slide] for slide in joined(batches, "slides").tolist()} == {"good"}


@pytest.mark.parametrize("workers", [0, 1])
def test_when_nothing_can_be_read_the_stream_ends_with_a_sentence(
    half_corrupt: Path, workers: int
) -> None:
    spoil(half_corrupt.with_name("good.tif"))
    with pytest.raises(errors.SlideError, match="and its 8 replacements cannot be read") as told:
        read(half_corrupt, workers=workers)
    assert "Traceback" not in str(told.value)
