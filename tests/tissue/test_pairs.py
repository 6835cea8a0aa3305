import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from pathfm_cli import errors
from pathfm_cli.tissue import pairs


def test_a_raster_holds_the_pixels_whose_centre_is_inside() -> None:
    """A box with a hole, and the triangle x > 35, y > x - 32.25, y < 40 - (x - 35) / 2."""
    corners = [(35, 2.75), (35, 40), (359 / 6, 359 / 6 - 32.25)]
    box = shapely.difference(shapely.box(3, 2, 31, 25), shapely.box(10, 8, 20, 19))
    shape = shapely.multipolygons([box, shapely.Polygon(corners)])
    x, y = np.meshgrid(np.arange(60) + 0.5, np.arange(45) + 0.5)
    hole = (10 < x) & (x < 20) & (8 < y) & (y < 19)
    in_box = (3 < x) & (x < 31) & (2 < y) & (y < 25) & ~hole
    in_triangle = (x > 35) & (y > x - 32.25) & (y < 40 - (x - 35) / 2)
    found = pairs.raster(shape, (1.0, 1.0), (60, 45))
    assert np.array_equal(found, in_box | in_triangle)
    assert found[:, :32].sum() == 28 * 23 - 10 * 11
    half = pairs.raster(shapely.box(2, 2, 10, 6), (0.5, 2.0), (8, 20))
    assert half[4:12, 1:5].all() and half.sum() == 4 * 8


def test_glass_is_the_median_outside_the_tissue() -> None:
    rgb = np.full((4, 4, 3), (240, 241, 242), np.uint8)
    mask = np.zeros((4, 4), bool)
    rgb[0], mask[0] = (190, 20, 90), True
    rgb[1] = (10, 10, 10)  # A pen outside the tissue is no glass.
    assert pairs.make("x", rgb, mask).glass.tolist() == [240, 241, 242]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Pictures of 40 x 20 px at 4 um/px: one with GeoJSON, one with a mask, one with nothing."""
    images, notes = tmp_path / "images", tmp_path / "notes"
    images.mkdir()
    notes.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 20), (243, 240, 238)).save(images / f"{name}.png")
    box = json.loads(shapely.to_geojson(shapely.box(0, 0, 20, 20)))
    (notes / "a.geojson").write_text(json.dumps(box))
    half = np.zeros((10, 20), np.uint8)
    half[:, 10:] = 1
    Image.fromarray(half).save(notes / "b.png")
    return images, notes


def test_pictures_are_paired_by_name_and_brought_to_the_resolution(
    folders: tuple[Path, Path],
) -> None:
    found = {pair.name: pair for pair in pairs.of_images(*folders, image_mpp=4.0, mpp=8.0)}
    assert sorted(found) == ["a", "b"]
    assert found["a"].rgb.shape == (10, 20, 3)
    left = np.zeros((10, 20), bool)
    left[:, :10] = True
    assert np.array_equal(found["a"].mask, left)
    assert np.array_equal(found["b"].mask, ~left)


def test_a_picture_that_is_none_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.png").write_bytes(b"no picture")
    with pytest.raises(errors.SlideError, match="a.png is no readable picture"):
        list(pairs.of_images(*folders, image_mpp=4.0, mpp=8.0))


def test_a_huge_picture_is_not_opened(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MAX_PIXELS", 100)
    with pytest.raises(errors.SlideError, match=r"a\.png has more than"):
        list(pairs.of_images(*folders, image_mpp=4.0, mpp=8.0))


def test_a_digest_follows_pixels_and_truth() -> None:
    rgb, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool)
    first = pairs.digest([pairs.make("x", rgb, mask)])
    assert first == pairs.digest([pairs.make("x", rgb.copy(), mask.copy())]) and len(first) == 12
    other = mask.copy()
    other[2, 2] = True
    assert first != pairs.digest([pairs.make("x", rgb, other)])
    assert first != pairs.digest([pairs.make("y", rgb, mask)])


WRONG = {
    "no folder": (("none", None, None, None), "There is no folder none"),
    "pictures without a resolution": (("notes", "images", None, None), "go together"),
    "a resolution without pictures": (("notes", None, 8.0, None), "go together"),
    "pictures and slides": (("notes", "images", 8.0, ["s.parquet"]), "not both"),
    "no pictures": (("notes", "none", 8.0, None), "There is no folder none"),
    "no thumbnail": (("notes", "images", 0.1, None), "--image-mpp 0.1 is no thumbnail"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_sources_that_do_not_go_together_are_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: tuple, message: str
) -> None:
    monkeypatch.chdir(folders[0].parent)
    with pytest.raises(errors.UsageError, match=message):
        pairs.check(*arguments)
    pairs.check("notes", "images", 8.0, None)


def test_an_annotation_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "x.png").touch()
    assert pairs.annotation(tmp_path / "notes", "../x") is None
