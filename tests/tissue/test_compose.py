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


@pytest.mark.parametrize("name", ["border", "pen"])
def test_what_is_hidden_is_no_tissue(
    found: list[pairs.Pair], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The left half is hidden; the truth of the right half stays."""
    left = np.zeros((SIZE, SIZE), bool)
    left[:, : SIZE // 2] = True
    before = [make(found, PLAIN, index).mask for index in range(6)]
    monkeypatch.setattr(artefacts, name, lambda *arguments: left)
    recipe = dataclasses.replace(PLAIN, **{name: 1.0})
    after = [make(found, recipe, index).mask for index in range(6)]
    assert sum(mask[left].sum() for mask in before) > 200
    for plain, hidden in zip(before, after, strict=True):
        assert np.array_equal(hidden, plain & ~left)


def test_pale_stain_has_12_to_45_percent_of_its_strength() -> None:
    od = np.full((4, 4, 3), (0.5, 0.9, 0.4), np.float32)
    shares = []
    for seed in range(40):
        full, pale = (
            compose._stained(od, dataclasses.replace(PLAIN, pale=p), np.random.default_rng(seed))
            for p in (0.0, 1.0)
        )
        shares.append(float(pale.sum() / full.sum()))
    assert 0.12 <= min(shares) < 0.18 and 0.38 < max(shares) <= 0.45


def test_ink_as_thin_as_it_gets_hides_what_is_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strokes of full cover on the left half, of opacity 0.45 to 1; the rest stays as it is."""
    left = np.zeros((SIZE, SIZE), np.float32)
    left[:, : SIZE // 2] = 1
    monkeypatch.setattr(artefacts.fields, "stroke", lambda *arguments: left.copy())
    monkeypatch.setattr(artefacts.fields, "blob", lambda *arguments: left.copy())
    monkeypatch.setattr(artefacts.fields, "blur", lambda picture, sigma: picture)
    monkeypatch.setattr(artefacts.fields, "smooth", lambda *arguments: np.zeros_like(left))
    for seed in range(12):
        canvas = np.full((SIZE, SIZE, 3), 200, np.float32)
        hidden = artefacts.pen(canvas, np.random.default_rng(seed), 8.0)
        assert np.array_equal(hidden, left > 0) and (canvas[left == 0] == 200).all()


def test_a_fold_is_darker_never_paler() -> None:
    od = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    for seed in range(6):
        folded = artefacts.fold(od, np.random.default_rng(seed), 8.0)
        assert (folded >= od).all() and folded.max() <= 0.5 * 2.6 + 1e-5
    assert folded.max() > 0.5 * 1.2
