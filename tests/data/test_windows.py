import collections

import numpy as np
import pytest
import shapely
from tissues import MakeTissue

from pathfm_cli.data import draw, windows

CONFIG = draw.SampleConfig(mpp=(0.5, 1.0), size_px=100)


@pytest.fixture
def sampler(make_tissue: MakeTissue) -> draw.Sampler:
    """Two slides of 0.5 um/px: tissue everywhere, and on the left half."""
    whole, left = shapely.box(0, 0, 4000, 4000), shapely.box(0, 0, 2000, 4000)
    table = make_tissue(("whole", whole, 0.5, 4000), ("left", left, 0.5, 4000))
    return draw.Sampler(table, CONFIG, 5)


@pytest.mark.parametrize(("count", "side"), [(2, 2), (4, 2), (5, 3), (9, 3), (16, 4)])
def test_patches_of_a_window_lie_in_it(sampler: draw.Sampler, count: int, side: int) -> None:
    source = windows.Windows(sampler, count)
    for window in range(40):
        patches = [source.draw(window * count + number) for number in range(count)]
        assert [patch.index for patch in patches] == list(
            range(window * count, (window + 1) * count)
        )
        anchor = sampler.draw(window)
        assert {(patch.slide, patch.mpp) for patch in patches} == {(anchor.slide, anchor.mpp)}
        extent = 100 * anchor.mpp / 0.5
        for axis in ("x_px0", "y_px0"):
            places = [getattr(patch, axis) for patch in patches]
            assert max(places) - min(places) <= (side - 1) * extent
            assert min(places) >= 0 and max(places) + extent <= 4000
            assert count < 4 or len(set(places)) > 1
        for patch in patches:
            assert patch.tissue_fraction >= CONFIG.min_tissue
            covered = 1.0 if patch.slide == 0 else min(1, max(0, (2000 - patch.x_px0) / extent))
            assert patch.tissue_fraction == pytest.approx(covered)


def test_a_window_lies_around_its_anchor(sampler: draw.Sampler) -> None:
    source = windows.Windows(sampler, 16)
    away = []
    for window in range(300):
        anchor, patch = sampler.draw(window), source.draw(16 * window + 3)
        extent = 200 * anchor.mpp
        places = (anchor.x_px0, anchor.y_px0)
        if anchor.slide == 0 and 600 < min(places) and max(places) < 2800:
            away.append(
                (np.array([patch.x_px0, patch.y_px0]) - [anchor.x_px0, anchor.y_px0]) / extent
            )
    assert len(away) > 20
    assert np.abs(away).max() <= 1.51
    assert np.abs(away).max() > 1.3
    assert np.mean(away, axis=0) == pytest.approx([0, 0], abs=0.3)


@pytest.mark.parametrize(("count", "share"), [(4, 0.444), (16, 0.088)])
def test_the_stated_overlap(sampler: draw.Sampler, count: int, share: float) -> None:
    source = windows.Windows(sampler, count)
    found = []
    for window in range(1500):
        first, second = (source.draw(count * window + number) for number in (0, 1))
        if first.slide == 0:
            extent = 200 * first.mpp
            gap = np.abs([first.x_px0 - second.x_px0, first.y_px0 - second.y_px0])
            found.append(np.prod(np.maximum(0, 1 - gap / extent)))
    assert np.mean(found) == pytest.approx(share, abs=0.03)


def test_draws_are_pure_and_replacements_come_from_elsewhere(sampler: draw.Sampler) -> None:
    source = windows.Windows(sampler, 4)
    patches = [source.draw(number) for number in range(12)]
    assert [source.draw(number) for number in reversed(range(12))] == patches[::-1]
    other = source.draw(5, attempt=1)
    anchor = sampler.draw(1, attempt=1)
    assert other.index == 5
    assert (other.slide, other.mpp) == (anchor.slide, anchor.mpp)
    assert abs(other.x_px0 - anchor.x_px0) <= 200 * anchor.mpp
    assert other != patches[5]


def test_a_place_without_enough_tissue_around_is_the_anchors(make_tissue: MakeTissue) -> None:
    # Tissue just as large as a patch: only its own place holds all of it.
    island = shapely.box(1000, 1000, 1100, 1100)
    config = draw.SampleConfig(mpp=(0.5,), size_px=100, min_tissue=1.0)
    sampler = draw.Sampler(make_tissue(("s", island, 0.5, 4000)), config, 0)
    anchor = draw.Patch(7, 0, 1000.0, 1000.0, 0.5, 100, 1.0)
    near = sampler.draw_near(anchor, 8, 0, 2)
    assert (near.index, near.x_px0, near.y_px0, near.tissue_fraction) == (8, 1000, 1000, 1)


def test_single_patches_cover_all_tissue(sampler: draw.Sampler) -> None:
    source = windows.Windows(sampler, 16)
    cells = collections.Counter()
    for number in range(0, 16 * 1200, 16):
        patch = source.draw(number)
        if patch.slide == 0:
            cells[int(patch.x_px0 // 800), int(patch.y_px0 // 800)] += 1
    assert len(cells) == 25
    assert min(cells.values()) > 5
