import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, finders, geojson, index, polygons
from pathfm_cli.model import unet
from pathfm_cli.wsi import pyramid, regions

SLIDES = Path(__file__).parents[2].parent / "shared" / "data" / "slides"


@pytest.fixture(scope="module")
def demo(demo_slides: Path) -> cohort.Cohort:
    return cohort.open_cohort(demo_slides)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A square of tissue from 100 to 1100 with a pen stroke from 100 to 300 on the demo slide."""
    features = geojson.features(shapely.multipolygons([shapely.box(100, 100, 1100, 1100)]))
    pen = geojson.features(shapely.multipolygons([shapely.box(100, 100, 300, 1100)]))
    pen["features"][0]["properties"]["classification"]["name"] = "Pen"
    features["features"] += pen["features"]
    (tmp_path / "CMU-1-Small-Region.geojson").write_text(json.dumps(features))
    return tmp_path


def test_the_network_of_the_package_is_the_default() -> None:
    found = finders.choose()
    assert isinstance(found, finders.UNet) and found.method == "unet"
    assert found.key["weights"] == found.header.id and found.key["mpp"] == found.mpp
    assert finders.choose("unet", found.mpp, device="cpu").key == found.key


def test_the_demo_slide_is_found_by_network_and_threshold_alike(demo: cohort.Cohort) -> None:
    shapes = [
        finder.find(demo.slides[0], demo.reader)
        for finder in (finders.UNet(device="cpu"), finders.Otsu())
    ]
    both = shapely.intersection(shapes[0].tissue, shapes[1].tissue).area
    assert 2 * both / (shapes[0].tissue.area + shapes[1].tissue.area) > 0.93
    assert 0 < shapes[0].doubt_bits < 0.5 and shapes[1].doubt_bits is None


def test_outlines_of_people_are_taken_as_they_are(drawn: Path, demo: cohort.Cohort) -> None:
    found = finders.choose(annotations=drawn).find(demo.slides[0], demo.reader)
    assert found.tissue.bounds == (300, 100, 1100, 1100) and found.doubt_bits is None
    pen = finders.choose(annotations=drawn, include=("Pen",))
    assert pen.find(demo.slides[0], demo.reader).tissue.area == 200 * 1000


def test_what_is_excluded_adds_to_what_never_is_tissue(drawn: Path, demo: cohort.Cohort) -> None:
    found = finders.choose(annotations=drawn, exclude=("Tissue",))
    assert found.find(demo.slides[0], demo.reader).tissue.is_empty
    assert found.exclude == (
        *("Ignore*", "Background", "Artefact", "Artifact", "Pen", "Glass", "Tissue"),
    )
    both = finders.choose(annotations=drawn, include=("Pen", "Tissue"))
    assert both.find(demo.slides[0], demo.reader).tissue.area == 1000 * 1000


@pytest.mark.parametrize("name", ["Tumr", "tissue", "", "Ignore*"])
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_class_that_nobody_drew_is_refused(drawn: Path, option: str, name: str) -> None:
    with pytest.raises(errors.UsageError, match="is of the class") as caught:
        finders.choose(annotations=drawn, **{option: (name,)})
    assert caught.value.hint == "there are: Pen, Tissue"


def test_a_class_is_not_both_included_and_excluded(drawn: Path) -> None:
    with pytest.raises(errors.UsageError, match="Tissue is both included and excluded"):
        finders.choose(annotations=drawn, include=("Tissue",), exclude=("Tissue",))


def test_files_of_no_slide_are_no_hindrance(drawn: Path, demo: cohort.Cohort) -> None:
    """A pipe, which nobody writes to, a folder, a dangling link, and JSON that is none."""
    os.mkfifo(drawn / "z.geojson")
    (drawn / "other.geojson").mkdir()
    (drawn / "link.geojson").symlink_to("nowhere")
    (drawn / "half.geojson").write_text("{")
    finder = finders.choose(annotations=drawn, include=("Tissue",))
    assert finder.key and not finder.find(demo.slides[0], demo.reader).tissue.is_empty


def test_a_slide_without_outlines_is_an_error(drawn: Path, demo: cohort.Cohort) -> None:
    finder = finders.choose(annotations=drawn)
    (drawn / "CMU-1-Small-Region.geojson").rename(drawn / "other.geojson")
    with pytest.raises(errors.SlideError, match="CMU-1-Small-Region.geojson does not exist"):
        finder.find(demo.slides[0], demo.reader)


def test_the_key_follows_what_is_drawn(drawn: Path) -> None:
    before = finders.choose(annotations=drawn).key
    assert finders.choose(annotations=drawn).key == before
    for classes in ({"include": ("Tissue",)}, {"exclude": ("Tissue",)}):
        assert finders.choose(annotations=drawn, **classes).key != before
    (drawn / "more.geojson").write_text("[]")
    assert finders.choose(annotations=drawn).key != before


@pytest.mark.skipif(not SLIDES.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize("finder", [finders.Otsu(), finders.UNet(device="cpu")])
def test_a_pyramid_is_read_from_the_coarsest_level_that_is_fine_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finder: Any
) -> None:
    """40x: levels of 0.25, 1.0 and 4.0 um/px, so that a thumbnail of 8 or more takes the last."""
    index.index([str(SLIDES / "BS27_duodenum_HE_40x_ycc422.svs")], tmp_path / "s.parquet")
    opened = cohort.open_cohort(tmp_path / "s.parquet")
    mpps = [opened.slides[0].mpp * level.downsample for level in opened.slides[0].levels]
    assert max(mpps) == pytest.approx(4.04, abs=0.1)
    levels: list[int] = []
    read = regions.read

    def spy(table: Any, slide: Any, level: int, *rest: Any, **named: Any) -> Any:
        levels.append(level)
        return read(table, slide, level, *rest, **named)

    monkeypatch.setattr(regions, "read", spy)
    finder.find(opened.slides[0], opened.reader)
    assert set(levels) == {len(mpps) - 1}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a method that is not there": ({"method": "magic"}, "no method magic"),
    "a resolution for the network": ({"mpp": 3.0}, "trained for thumbnails of .* um/px, not 3"),
    "a resolution that is no thumbnail": ({"method": "otsu", "mpp": 0.1}, "0.1 is no thumbnail"),
    "weights for a threshold": ({"method": "otsu", "weights": "x"}, "takes no --weights"),
    "classes without annotations": ({"include": ["x"]}, "Only --annotations takes --include"),
    "a method for annotations": ({"method": "otsu", "annotations": "."}, "the place of --method"),
    "no resolution for annotations": ({"mpp": 0.0, "annotations": "."}, "the place of --mpp"),
    "a device for annotations": ({"device": "x", "annotations": "."}, "the place of --device"),
    "areas for annotations": (
        {"cleaning": polygons.Cleaning(), "annotations": "."},
        "the place of --min-object, --min-hole and --tolerance",
    ),
    "weights for annotations": ({"weights": "x", "annotations": "."}, "the place of --weights"),
    "a folder that is not there": ({"annotations": "none/"}, "none holds no annotations"),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_do_not_go_together_are_refused(name: str) -> None:
    arguments, message = WRONG[name]
    with pytest.raises(errors.UsageError, match=message) as caught:
        finders.choose(**arguments)
    assert caught.value.hint


def test_weights_of_another_kind_are_refused_before_the_first_slide(demo_slides: Path) -> None:
    with pytest.raises(errors.InputError, match="segmenter is needed"):
        finders.choose(weights=demo_slides)


@pytest.mark.parametrize("mpp", [None, 0, -8.0, math.nan, math.inf, "x", [8]])
def test_weights_of_no_resolution_are_refused_before_the_first_slide(
    tmp_path: Path, mpp: object
) -> None:
    settings = {"widths": [4, 6]} | ({} if mpp is None else {"mpp": mpp})
    header = artifacts.Header(kind="segmenter", settings=settings)
    unet.save(tmp_path / "u.safetensors", unet.UNet((4, 6)), header)
    with pytest.raises(errors.InputError, match=r"u\.safetensors does not say a resolution"):
        finders.choose(weights=tmp_path / "u.safetensors")


def test_choosing_imports_no_torch() -> None:
    code = (
        "import sys\nfrom pathfm_cli.data import finders, mask\n"
        "finders.choose().key, finders.choose('otsu').key\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_small_pieces_go_by_the_cleaning(demo: cohort.Cohort) -> None:
    cleaning = polygons.Cleaning(min_object_um2=1e9)
    found = finders.UNet(device="cpu", cleaning=cleaning).find(demo.slides[0], demo.reader)
    assert found.tissue.is_empty


def test_white_glass_has_no_tissue_and_no_doubt(
    demo: cohort.Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    glass = np.full((300, 200, 3), 243, np.uint8)
    monkeypatch.setattr(finders, "thumbnail", lambda *arguments: glass)
    found = finders.UNet(device="cpu").find(demo.slides[0], demo.reader)
    assert found.tissue.is_empty and found.doubt_bits == 0


@pytest.mark.parametrize(("share", "doubt"), [(0.04, 0.0), (0.06, 0.3274)])
def test_doubt_is_of_the_pixels_that_may_be_tissue(
    demo: cohort.Cohort, monkeypatch: pytest.MonkeyPatch, share: float, doubt: float
) -> None:
    """H(0.06) = 0.3274 bit; a probability of 0.04 is no doubt."""
    monkeypatch.setattr(
        unet.Segmenter,
        "probability",
        lambda self, rgb: np.full(rgb.shape[:2], share, np.float32),
    )
    found = finders.UNet(device="cpu").find(demo.slides[0], demo.reader)
    assert found.tissue.is_empty and found.doubt_bits == pytest.approx(doubt, abs=1e-4)


def test_a_thumbnail_has_a_greatest_size_in_both_directions(demo: cohort.Cohort) -> None:
    """8,000 x 8,000 px are allowed; at 8 um/px that is 64 mm, so 65 x 65 mm are too many."""
    side = round(65_000 / demo.slides[0].mpp)
    slide = dataclasses.replace(demo.slides[0], width_px0=side, height_px0=side)
    with pytest.raises(errors.SlideError, match="64 million pixels; train a coarser network"):
        finders.UNet(device="cpu").find(slide, demo.reader)
    with pytest.raises(errors.SlideError, match="64 million pixels; use a coarser --mpp"):
        finders.Otsu().find(slide, demo.reader)
    half = dataclasses.replace(slide, height_px0=side // 2)
    seen = []

    class Reader:
        def read_thumbnail(self, slide: pyramid.Slide, mpp: float) -> str:
            seen.append(mpp)
            return "pixels"

    assert finders.thumbnail(half, Reader(), 8.0, "") == "pixels" and seen == [8.0]
