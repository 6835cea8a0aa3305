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


def test_a_picture_is_not_its_own_mask_however_the_folder_is_spelled(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[0].parent)
    for other in ("images", "notes/../images", folders[0].absolute()):
        assert list(pairs.of_images("images", other, image_mpp=4.0, mpp=8.0)) == []
    assert [path.stem for path in pairs.pictures("images")] == ["a", "b", "c"]


GREY = Image.linear_gradient("L").resize((40, 20))
GREY.putpixel((0, 0), 0)
NO_MASKS = {
    "another shape": (Image.new("L", (40, 26)), "b.png is 40 x 26 pixels, .* than 40 x 20"),
    "white all over": (Image.new("L", (40, 20), 255), "nowhere is it black"),
    "a picture": (GREY, "7[0-9]% of it is neither"),
}


@pytest.mark.parametrize("name", NO_MASKS)
def test_a_picture_is_no_mask(folders: tuple[Path, Path], name: str) -> None:
    picture, message = NO_MASKS[name]
    picture.save(folders[1] / "b.png")
    with pytest.raises(errors.SlideError, match=message):
        list(pairs.of_images(*folders, image_mpp=4.0, mpp=8.0))


def test_a_mask_may_be_off_by_a_rounded_pixel_and_have_smooth_edges(tmp_path: Path) -> None:
    """1,001 x 500 px halved; 1 of 40 columns is grey."""
    values = np.zeros((250, 501), np.uint8)
    values[:, 240:] = 255
    values[:, 235:240] = 128
    Image.fromarray(values).save(tmp_path / "m.png")
    found = pairs.truth(tmp_path / "m.png", (1001, 500), (501, 250))
    assert found[:, 235:].all() and not found[:, :235].any()


def test_what_becomes_huge_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 x 20 px at 4 um/px would be 160 x 80 at 1."""
    monkeypatch.setattr(pairs, "MAX_PIXELS", 12_799)
    with pytest.raises(errors.SlideError, match="a.png at 1 um/px has more than"):
        list(pairs.of_images(*folders, image_mpp=4.0, mpp=1.0))
