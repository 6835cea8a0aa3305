"""Intervals against the normal approximation, scikit-learn on explicit resamples, and groups."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from pathfm_cli.tasks import bootstrap


def test_the_width_is_that_of_two_independent_recalls() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [4000, 1000])
    right = (rng.random(5000) < np.where(labels == 0, 0.9, 0.6)).astype(float)
    low, high = bootstrap.balanced_accuracy(labels, right, np.arange(5000), seed=0)
    recalls = [right[labels == label].mean() for label in (0, 1)]
    variance = sum(p * (1 - p) / n for p, n in zip(recalls, (4000, 1000), strict=True)) / 4
    assert (low + high) / 2 == pytest.approx(np.mean(recalls), abs=0.002)
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.08)


def test_it_equals_scikit_learn_on_resampled_rows() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 90)
    predicted = np.where(rng.random(90) < 0.7, labels, (labels + 1) % 3)
    right = (predicted == labels).astype(float)
    found = bootstrap.balanced_accuracy(labels, right, np.arange(90), seed=3)
    scores = []
    for _ in range(3000):
        drawn = rng.integers(0, 90, 90)
        scores.append(sklearn_metrics.balanced_accuracy_score(labels[drawn], predicted[drawn]))
    assert found == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.02)
    assert found == bootstrap.balanced_accuracy(labels, right, np.arange(90), seed=3)
    assert found != bootstrap.balanced_accuracy(labels, right, np.arange(90), seed=4)


def test_rows_of_a_patient_are_no_independent_evidence() -> None:
    """Ten copies of each row, drawn as one, give the interval of the rows without copies."""
    labels = np.tile([0, 1], 50)
    right = np.random.default_rng(2).random(100).round()
    alone = bootstrap.balanced_accuracy(labels, right, np.arange(100), seed=0)
    copies = [np.repeat(values, 10) for values in (labels, right, np.arange(100))]
    assert bootstrap.balanced_accuracy(*copies, seed=0) == pytest.approx(alone)
    naive = bootstrap.balanced_accuracy(*copies[:2], np.arange(1000), seed=0)
    assert naive[1] - naive[0] < 0.5 * (alone[1] - alone[0])


def test_a_perfect_score_has_no_width() -> None:
    labels = np.array([0, 0, 0, 1])
    assert bootstrap.balanced_accuracy(labels, np.ones(4), np.arange(4), seed=0) == (1.0, 1.0)
