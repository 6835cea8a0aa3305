import numpy as np
import pytest
from sklearn import metrics

from pathfm_cli.tissue import scores


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_areas_are_counted() -> None:
    """Truth 4 pixels, found 3: 2 in both, 2 missed, 1 false, 4 glass."""
    truth, found = mask_of("##.", "##.", "..."), mask_of("##.", "...", "#..")
    score = scores.compare(found, truth, 8.0)
    assert (score.both, score.missed, score.false, score.glass) == (2, 2, 1, 4)
    assert score.dice == pytest.approx(4 / 7)
    assert score.missed_area == 0.5 and score.false_area == 0.2
    assert score.dice == pytest.approx(metrics.f1_score(truth.ravel(), found.ravel()))


def test_the_outline_is_a_band_inside_the_mask() -> None:
    """At 24 um/px the band is the pixels beside an outer pixel: of 5 x 5, all but 3 x 3: 16."""
    truth = np.zeros((9, 9), bool)
    truth[2:7, 2:7] = True
    same = scores.compare(truth, truth, 24.0)
    assert (same.edge_both, same.edge_sum, same.boundary_dice) == (16, 32, 1.0)
    found = np.zeros((9, 9), bool)
    found[2:7, 2:6] = True
    # Of 5 x 4 the band has 14; they share the left column (5) and 3 more above and 3 below.
    moved = scores.compare(found, truth, 24.0)
    assert (moved.edge_both, moved.edge_sum) == (11, 30)


def test_the_edge_of_the_image_is_no_outline() -> None:
    full = np.ones((4, 4), bool)
    assert scores.compare(full, full, 8.0).edge_sum == 0


def test_nothing_found_where_nothing_is_is_right() -> None:
    score = scores.compare(np.zeros((2, 2), bool), np.zeros((2, 2), bool), 8.0)
    assert (score.dice, score.boundary_dice, score.missed_area, score.false_area) == (1, 1, 0, 0)


def test_areas_of_several_images_are_added() -> None:
    """One of 2 pixels missed, and one of 8 missed: 2 of 10 missed, not (0.5 + 0.125) / 2."""
    total = scores.total([scores.Score(both=1, missed=1), scores.Score(both=7, missed=1)])
    assert total.missed_area == 0.2 and total.dice == 16 / 18
    assert scores.total([]) == scores.Score()
