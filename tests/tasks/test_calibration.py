from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from pathfm_cli.tasks import calibration


def test_bins_by_hand():
    """Confidences .9, .9, .6 and 1: bins 13, 13, 9 and 14 of 15."""
    p = np.array([[[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.0, 1.0]]])
    found = calibration.measure(p, p.argmax(2), np.array([0, 0, 0, 1]))
    assert found.count.nonzero()[0].tolist() == [9, 13, 14]
    assert found.count[[9, 13, 14]].tolist() == [1, 2, 1]
    assert found.confidence[[9, 13, 14]] == pytest.approx([0.6, 0.9, 1.0])
    assert found.accuracy[[9, 13, 14]] == pytest.approx([1.0, 0.5, 1.0])
    assert found.ece == pytest.approx([(1 * 0.4 + 2 * 0.4 + 0) / 4])
    assert found.brier == pytest.approx([(0.02 + 1.62 + 0.32 + 0) / 4])
    assert np.isnan(found.accuracy[0])


def test_each_run_is_measured_alone():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], (2, 50))
    truth = rng.integers(0, 3, 50)
    both = calibration.measure(p, p.argmax(2), truth)
    for run in range(2):
        one = calibration.measure(p[run : run + 1], p[run : run + 1].argmax(2), truth)
        assert both.ece[run] == pytest.approx(one.ece[0])
        squares = np.square(p[run] - np.eye(3)[truth]).sum(1).mean()
        assert both.brier[run] == pytest.approx(squares)
    assert both.count.sum() == 100


def test_two_classes_have_twice_sklearns_brier():
    p = np.random.default_rng(1).random(40)
    truth = np.random.default_rng(2).integers(0, 2, 40)
    both = np.stack([1 - p, p], 1)[None]
    found = calibration.measure(both, both.argmax(2), truth)
    assert found.brier[0] == pytest.approx(2 * sklearn_metrics.brier_score_loss(truth, p))
