import dataclasses

import numpy as np
import pytest

from pathfm_cli.tissue import artefacts, compose, pairs

SIZE = 96
PLAIN = compose.CATEGORIES["plain"]


@pytest.fixture(scope="module")
def found() -> list[pairs.Pair]:
    """A thumbnail of one stained disc on glass."""
    y, x = np.mgrid[:300, :300]
    mask = (x - 150) ** 2 + (y - 150) ** 2 < 120**2
    noise = np.random.default_rng(0).integers(-20, 21, (300, 300, 1))
    rgb = np.where(mask[..., None], np.array([190, 100, 160]) + noise, 243).astype(np.uint8)
    return [pairs.make("disc", rgb, mask)]


def make(found: list[pairs.Pair], recipe: compose.Recipe, index: int = 0) -> compose.Scene:
    return compose.scene(found, recipe, 7, index, size_px=SIZE, mpp=8.0)


def test_a_scene_is_a_function_of_its_number(found: list[pairs.Pair]) -> None:
    for index in (0, 3):
        one, two = make(found, compose.Recipe(), index), make(found, compose.Recipe(), index)
        assert np.array_equal(one.rgb, two.rgb) and np.array_equal(one.mask, two.mask)
    assert not np.array_equal(make(found, PLAIN, 0).rgb, make(found, PLAIN, 1).rgb)


def test_the_stain_lies_where_the_truth_says(found: list[pairs.Pair]) -> None:
    """Without artefacts, tissue is much darker in green than the glass around it."""
    plain = dataclasses.replace(PLAIN, jpeg=0.0)
    for index in range(12):
        scene = make(found, plain, index)
        green = scene.rgb[..., 1].astype(float)
        if scene.mask.sum() > 200:
            inside, outside = np.median(green[scene.mask]), np.median(green[~scene.mask])
            assert inside < outside - 30


def test_a_blank_scene_has_no_tissue(found: list[pairs.Pair]) -> None:
    for index in range(6):
        assert not make(found, compose.CATEGORIES["blank"], index).mask.any()


@pytest.mark.parametrize("name", compose.CATEGORIES)
def test_every_difficulty_is_made(found: list[pairs.Pair], name: str) -> None:
    scene = make(found, compose.CATEGORIES[name], 1)
    assert scene.rgb.shape == (SIZE, SIZE, 3) and scene.rgb.dtype == np.uint8
    assert scene.mask.shape == (SIZE, SIZE) and scene.mask.dtype == np.bool_


def test_fat_counts_as_tissue(found: list[pairs.Pair]) -> None:
    """The same scenes with and without drawn fat: never less tissue, on some of them more."""
    fatty = dataclasses.replace(PLAIN, fatty=1.0)
    more = [
        int(make(found, fatty, index).mask.sum()) - int(make(found, PLAIN, index).mask.sum())
        for index in range(12)
    ]
    assert min(more) >= 0 and max(more) > 200


def test_an_unscanned_border_and_ink_hide_tissue() -> None:
    for draw in (artefacts.border, artefacts.pen):
        hidden = 0
        for seed in range(12):
            canvas = np.full((SIZE, SIZE, 3), 150, np.float32)
            cover = draw(canvas, np.random.default_rng(seed), 8.0)
            changed = np.abs(canvas - 150).max(axis=2) > 0
            assert cover.dtype == np.bool_ and not (cover & ~changed).any()
            hidden += int(cover.sum())
        assert hidden > 0


def test_nothing_but_the_canvas_changes_under_a_coverslip() -> None:
    canvas = np.full((SIZE, SIZE, 3), 240, np.float32)
    artefacts.coverslip(canvas, np.random.default_rng(3), 8.0)
    artefacts.bubbles(canvas, np.random.default_rng(3), 8.0)
    artefacts.dust(canvas, np.random.default_rng(3), 8.0)
    assert np.isfinite(canvas).all() and canvas.min() < 235
