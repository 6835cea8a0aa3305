from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathfm_cli import errors
from pathfm_cli.data import cohort, draw, pictures, sample
from pathfm_cli.wsi import pyramid

GREEN = np.array([0, 150, 40])
ORANGE = np.array([230, 120, 0])


def near(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).max(axis=-1) < 20


def test_an_outline_runs_where_the_polygon_is(ring) -> None:
    slide = pyramid.Slide("name", "", 0, "", 2.0, 1000, 1000, ())
    thumbnail = np.full((500, 500, 3), 243, dtype=np.uint8)
    pixels = np.asarray(pictures.outline(slide, thumbnail, ring))
    green = np.argwhere(near(pixels[:500], GREEN))
    assert green.min(axis=0) == pytest.approx([50, 50], abs=2)
    assert green.max(axis=0) == pytest.approx([450, 450], abs=2)
    orange = np.argwhere(near(pixels[:500], ORANGE))
    assert orange.min(axis=0) == pytest.approx([200, 200], abs=2)
    assert orange.max(axis=0) == pytest.approx([300, 300], abs=2)
    assert (pixels[250, 100:190] == 243).all()


def test_the_scale_bar_is_as_long_as_it_says(ring) -> None:
    """A slide of 2,000 um on 500 px: a bar of 200 um is 50 px."""
    slide = pyramid.Slide("name", "", 0, "", 2.0, 1000, 1000, ())
    thumbnail = np.full((500, 500, 3), 243, dtype=np.uint8)
    strip = np.asarray(pictures.outline(slide, thumbnail, ring).convert("L"))[500:]
    dark = strip[strip.shape[0] // 2] < 100
    end = np.flatnonzero(dark)[-1]
    start = np.flatnonzero(~dark[:end])[-1]
    assert end - start == pytest.approx(50, abs=2)


def test_outlines_of_an_artifact(demo_tissue: Path, tmp_path: Path) -> None:
    assert pictures.outlines(demo_tissue, tmp_path / "previews") == []
    with Image.open(tmp_path / "previews" / "CMU-1-Small-Region.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[0] == pytest.approx(1600 + 34) and near(pixels, GREEN).sum() > 1000


def test_a_foreign_picture_is_not_written_over(demo_tissue: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "CMU-1-Small-Region.png")
    before = (tmp_path / "CMU-1-Small-Region.png").read_bytes()
    with pytest.raises(errors.OutputClash, match="is no picture of pathfm"):
        pictures.outlines(demo_tissue, tmp_path)
    assert (tmp_path / "CMU-1-Small-Region.png").read_bytes() == before
    pictures.outlines(demo_tissue, tmp_path, overwrite=True)
    assert pictures.outlines(demo_tissue, tmp_path) == []


def test_a_contact_sheet_shows_the_patches_in_order(demo_tissue: Path, tmp_path: Path) -> None:
    config = draw.SampleConfig(mpp=(1.0,), size_px=192)
    patches, sheet = tmp_path / "p.parquet", tmp_path / "sheet.png"
    sample.sample(demo_tissue, patches, config, sample.Random(n=5))
    assert pictures.contact_sheet(patches, sheet) == []
    opened = cohort.open_cohort(patches)
    with Image.open(sheet) as image:
        pixels = np.asarray(image)
    row = opened.table.frame.row(1, named=True)
    second = opened.reader.read_patch(opened.slides[0], row["x_px0"], row["y_px0"], 1.0, 192)
    assert np.array_equal(pixels[8 : 8 + 192, 208 : 208 + 192], second)


def test_a_long_set_is_shown_at_equal_steps(demo_tissue: Path, tmp_path: Path) -> None:
    config = draw.SampleConfig(mpp=(2.0,), size_px=32)
    patches, sheet = tmp_path / "p.parquet", tmp_path / "sheet.png"
    sample.sample(demo_tissue, patches, config, sample.Random(n=1000))
    pictures.contact_sheet(patches, sheet)
    with Image.open(sheet) as image:
        assert image.size == (8 * 200 + 8, 6 * 234 + 8)


def test_a_patch_that_cannot_be_read_is_white_and_told(
    demo_tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self, slide, *place):
        raise errors.SlideError(f"{slide.slide}: tile 3 is corrupt")

    config = draw.SampleConfig(mpp=(1.0,), size_px=64)
    patches = tmp_path / "p.parquet"
    sample.sample(demo_tissue, patches, config, sample.Random(n=1))
    monkeypatch.setattr(pyramid.Reader, "read_patch", broken)
    monkeypatch.setattr(pyramid.Reader, "read_thumbnail", broken)
    told = [("CMU-1-Small-Region", "CMU-1-Small-Region: tile 3 is corrupt")]
    assert pictures.contact_sheet(patches, tmp_path / "sheet.png") == told
    assert pictures.outlines(demo_tissue, tmp_path / "previews") == told


def test_long_names_are_cut(ring) -> None:
    cells = [(np.zeros((8, 8, 3), dtype=np.uint8), "x" * 500, "caption")]
    assert pictures.sheet(cells).size == (208, 242)
