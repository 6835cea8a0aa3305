import dataclasses
import json
from pathlib import Path

import geopandas
import numpy as np
import openslide
import polars as pl
import pytest
import shapely
import tifffile
from tissues import DEMO_SLIDE, ROOT

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, finders, index, mask, polygons

SLIDES = ROOT.parent / "shared" / "data" / "slides"
OTSU = finders.Otsu()


def write_slide(path: Path, pixels: np.ndarray) -> None:
    """A tiled TIFF whose resolution tag says 2 um/px."""
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        tile=(128, 128),
        compression="deflate",
        resolution=(5000, 5000),
        resolutionunit="CENTIMETER",
    )


def indexed(folder: Path, *names: str) -> Path:
    out = folder / "slides.parquet"
    index.index([str(folder / name) for name in names], out)
    return out


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Blank glass, a pink square of 300 x 300 px at 2 um/px, and a file that is no slide."""
    glass = np.full((512, 640, 3), 243, dtype=np.uint8)
    square = glass.copy()
    square[100:400, 200:500] = (225, 150, 190)
    write_slide(tmp_path / "blank.tif", glass)
    write_slide(tmp_path / "square.tif", square)
    (tmp_path / "wrong.tif").write_bytes(b"no slide")
    return indexed(tmp_path, "blank.tif", "square.tif", "wrong.tif")


def saturation_mask(path: Path, mpp0: float, mpp: float) -> np.ndarray:
    """Tissue by another way: openslide's pixels, HSV saturation, one fixed threshold."""
    with openslide.OpenSlide(str(path)) as slide:
        width, height = (round(side * mpp0 / mpp) for side in slide.dimensions)
        image = slide.get_thumbnail(slide.dimensions).resize((width, height))
    rgb = np.asarray(image.convert("RGB")).astype(float)
    return np.ptp(rgb, axis=2) / rgb.max(axis=2) > 0.08


def burnt(shape: shapely.Geometry, mask_shape: tuple[int, int], scale: float) -> np.ndarray:
    y, x = np.mgrid[: mask_shape[0], : mask_shape[1]] + 0.5
    return np.asarray(shapely.contains_xy(shape, x * scale, y * scale))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_the_demo_slide_agrees_with_another_method(demo_tissue: Path) -> None:
    row = artifacts.read_table(demo_tissue, "tissue").frame.row(0, named=True)
    shape = shapely.from_wkb(row["geometry"])
    reference = saturation_mask(DEMO_SLIDE, 0.499, 8.0)
    assert dice(burnt(shape, reference.shape, 8.0 / 0.499), reference) > 0.93
    assert row["tissue_area_mm2"] == pytest.approx(shape.area * 0.499**2 / 1e6)
    assert row["tissue_area_mm2"] == pytest.approx(reference.sum() * 64 / 1e6, rel=0.1)
    assert row["tissue_method"] == "otsu"


REAL = {"BS27_duodenum_HE_40x_ycc422.svs": 0.2528, "celiac_duodenum_HE_10x.svs": 1.0112}


@pytest.mark.skipif(not SLIDES.exists(), reason="needs the slides of ../shared/data")
@pytest.mark.parametrize(("name", "mpp0"), REAL.items())
def test_real_slides_agree_with_another_method(tmp_path: Path, name: str, mpp0: float) -> None:
    slides = tmp_path / "s.parquet"
    index.index([str(SLIDES / name)], slides)
    opened = cohort.open_cohort(slides)
    row = mask.outline(opened.slides[0], opened.reader, OTSU)
    with openslide.OpenSlide(str(SLIDES / name)) as slide:
        level = slide.get_best_level_for_downsample(8.0 / mpp0)
        region = slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB")
        rgb = np.asarray(region).astype(float)
        scale = slide.level_downsamples[level]
    reference = np.ptp(rgb, axis=2) / rgb.max(axis=2) > 0.05
    assert dice(burnt(shapely.from_wkb(row["geometry"]), reference.shape, scale), reference) > 0.85


def test_geopandas_reads_it_with_every_column(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "tissue.parquet"
    mask.mask(three, out, OTSU)
    frame = geopandas.read_parquet(out)
    assert frame.crs is None and frame.geometry.name == "geometry"
    assert list(frame["slide"]) == ["blank", "square", "wrong"]
    assert list(frame.geometry.is_empty) == [True, False, False]
    assert frame.geometry[2] is None
    assert frame.geometry[1].geom_type == "MultiPolygon"
    before = artifacts.read_table(three).frame.columns
    assert [c for c in frame.columns if c in before] == before
    assert frame["tissue_area_mm2"][0] == 0.0
    geo = json.loads(pl.read_parquet_metadata(out)["geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["bbox"] == pytest.approx(frame.total_bounds)


def test_a_square_is_found_where_it_is(three: Path, tmp_path: Path) -> None:
    """200 to 500 by 100 to 400 px at 2 um/px; a mask pixel is 4 px, the blur another 6."""
    done = mask.mask(three, tmp_path / "t.parquet", OTSU)
    row = artifacts.read_table(tmp_path / "t.parquet").frame.row(1, named=True)
    shape = shapely.from_wkb(row["geometry"])
    assert shape.bounds == pytest.approx((200, 100, 500, 400), abs=10)
    assert row["tissue_area_mm2"] == pytest.approx(0.36, rel=0.07)
    assert done.record["rows"] == 3 and done.record["failed"] == 1
    assert done.failures == ()
    assert done.notes == (
        "1 of 3 slides carry errors from index",
        "no tissue on 1 of 3 slides, such as blank",
    )


def test_the_error_of_index_is_carried_and_its_row_has_no_tissue(
    three: Path, tmp_path: Path
) -> None:
    mask.mask(three, tmp_path / "t.parquet", OTSU)
    frame = artifacts.read_table(tmp_path / "t.parquet").frame
    assert frame["error"].to_list() == artifacts.read_table(three).frame["error"].to_list()
    assert frame.row(2, named=True)["geometry"] is None
    assert frame["tissue_method"].to_list() == ["otsu", "otsu", None]


def test_a_slide_that_fails_is_a_row_and_can_be_too_many(three: Path, tmp_path: Path) -> None:
    write_slide(tmp_path / "square.tif", np.zeros((512, 512, 3), dtype=np.uint8))
    out = tmp_path / "t.parquet"
    with pytest.raises(errors.TooManyFailures, match="1 slides failed, more than --max-failed 0"):
        mask.mask(three, out, OTSU, max_failed=0)
    assert not out.exists()
    done = mask.mask(three, out, OTSU, max_failed=1)
    ((name, error),) = done.failures
    assert name == "square" and "has changed since it was indexed" in error
    frame = artifacts.read_table(out).frame
    assert frame["error"][1] == error and frame["geometry"][1] is None
    assert mask.mask(three, out, OTSU).failures == done.failures


def test_the_tile_table_is_named_from_the_new_folder(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "down" / "t.parquet"
    mask.mask(three, out, OTSU)
    table = artifacts.read_table(out, "tissue")
    assert table.header.files["tiles"].startswith("../../slides.tiles-")
    assert len(cohort.open_cohort(out).slides) == 2
    assert table.header.parents == (f"slides:{artifacts.read_header(three).id}",)


def test_a_rerun_goes_on_where_a_killed_run_stopped(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask, "CHUNK", 1)
    whole, out = tmp_path / "whole.parquet", tmp_path / "t.parquet"
    mask.mask(three, whole, OTSU, workers=1)
    outline = mask.outline
    read: list[str] = []

    def dying(slide, reader, config):
        if slide.slide == "square":
            raise RuntimeError("killed")
        return outline(slide, reader, config)

    def counting(slide, reader, config):
        read.append(slide.slide)
        return outline(slide, reader, config)

    monkeypatch.setattr(mask, "outline", dying)
    with pytest.raises(RuntimeError):
        mask.mask(three, out, OTSU, workers=1)
    assert not out.exists() and list(tmp_path.glob("t.parquet.parts-*"))
    assert mask.plan(three, out, OTSU)["already_done"] == 1
    monkeypatch.setattr(mask, "outline", counting)
    mask.mask(three, out, OTSU, workers=1)
    assert read == ["square"]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("t.parquet.parts-*"))


def test_threads_change_nothing(three: Path, tmp_path: Path) -> None:
    for workers in (1, 4):
        mask.mask(three, tmp_path / f"{workers}.parquet", OTSU, workers=workers)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "4.parquet").read_bytes()


def test_rerun_is_up_to_date_and_other_settings_clash(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    first = mask.mask(three, out, OTSU)
    assert mask.mask(three, out, OTSU).notes[0] == f"{out} is up to date"
    assert mask.mask(three, out, OTSU).record == first.record
    with pytest.raises(errors.OutputClash, match=r"mpp=8.0 \(now 4.0\)"):
        mask.mask(three, out, finders.Otsu(mpp=4.0))
    with pytest.raises(errors.OutputClash, match="min_hole_um2"):
        mask.check(out, finders.Otsu(cleaning=polygons.Cleaning(min_hole_um2=5)))
    assert mask.plan(three, out, OTSU)["already_done"] == 3


def test_a_thumbnail_has_a_greatest_size(
    demo_slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = cohort.open_cohort(demo_slides)
    huge = dataclasses.replace(opened.slides[0], width_px0=10**9, height_px0=10**9)
    row = mask.outline(huge, opened.reader, OTSU)
    assert "more than 64 million pixels" in row["mask_error"] and row["geometry"] is None


def test_only_slides_are_taken(demo_tissue: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="kind tissue; slides is needed"):
        mask.mask(demo_tissue, tmp_path / "t.parquet", OTSU)
