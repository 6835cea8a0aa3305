from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from pathfm_cli.tasks import metrics

TABLE = np.array([[5, 1, 0], [2, 3, 1], [0, 0, 8]])
"""Three classes by hand: 12 background-ish pixels, rows are the truth."""


def test_confusion_counts_truth_in_rows():
    truth, predicted = np.array([[0, 0], [1, 2]]), np.array([[0, 1], [1, 0]])
    assert metrics.confusion(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_by_hand():
    assert metrics.recall(TABLE).tolist() == pytest.approx([5 / 6, 3 / 6, 1])
    assert metrics.balanced_accuracy(TABLE) == pytest.approx((5 / 6 + 3 / 6 + 1) / 3)
    assert metrics.accuracy(TABLE) == pytest.approx(16 / 20)
    assert metrics.dice(TABLE).tolist() == pytest.approx([10 / 13, 6 / 10, 16 / 17])
    assert metrics.iou(TABLE).tolist() == pytest.approx([5 / 8, 3 / 7, 8 / 9])
    assert metrics.dice_micro_foreground(TABLE) == pytest.approx((6 + 16) / (10 + 17))


def test_a_batch_is_its_parts():
    batch = np.stack([TABLE, TABLE.T, TABLE + 1])
    for name in ("recall", "balanced_accuracy", "accuracy", "dice", "iou", "dice_micro_foreground"):
        function = getattr(metrics, name)
        together = function(batch)
        for i, table in enumerate(batch):
            np.testing.assert_array_equal(together[i], function(table))


def test_what_does_not_occur_is_nan_and_left_out():
    table = np.array([[4, 0, 1], [0, 0, 0], [1, 0, 2]])
    assert np.isnan(metrics.recall(table)[1])
    assert metrics.balanced_accuracy(table) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert np.isnan(metrics.dice(table)[1])
    assert np.isnan(metrics.dice_micro_foreground(np.array([[7, 0], [0, 0]])))
    assert metrics.dice_micro_foreground(np.array([[7, 1], [0, 0]])) == 0


def test_equals_sklearn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 500), rng.integers(0, 5, 500)
    table = metrics.confusion(truth, predicted, 5)
    assert table.tolist() == sklearn_metrics.confusion_matrix(truth, predicted).tolist()
    expected = sklearn_metrics.balanced_accuracy_score(truth, predicted)
    assert metrics.balanced_accuracy(table) == pytest.approx(expected, abs=1e-15)
    jaccard = sklearn_metrics.jaccard_score(truth, predicted, average=None)
    np.testing.assert_allclose(metrics.iou(table), jaccard, rtol=1e-14)
    f1 = sklearn_metrics.f1_score(truth, predicted, average=None)
    np.testing.assert_allclose(metrics.dice(table), f1, rtol=1e-14)
    micro = sklearn_metrics.f1_score(truth, predicted, average="micro", labels=[1, 2, 3, 4])
    assert metrics.dice_micro_foreground(table) == pytest.approx(micro, abs=1e-15)
