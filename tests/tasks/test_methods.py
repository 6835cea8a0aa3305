from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import linear_model, neighbors
from sklearn import metrics as sklearn_metrics

from pathfm_cli.tasks import methods


def part(rows, seed, classes=3, width=8, spread=1.0):
    centres = np.random.default_rng(7).standard_normal((classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    points = centres[labels] + spread * rng.standard_normal((rows, width))
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


TRAIN, VAL, TEST = part(300, 0), part(200, 1), part(200, 2)


def test_knn_equals_sklearn():
    found = methods.knn(TRAIN, {"test": TEST}, 3, neighbours=15)["test"]
    peer = neighbors.KNeighborsClassifier(
        15, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(TRAIN[0].numpy(), TRAIN[1].numpy())
    np.testing.assert_allclose(found, peer.predict_proba(TEST[0].numpy()), atol=1e-4)
    assert found.sum(1) == pytest.approx(1.0)


def test_knn_takes_all_where_there_are_fewer():
    few = TRAIN[0][:4], torch.tensor([0, 0, 1, 1])
    found = methods.knn(few, {"test": TEST}, 3, neighbours=20)["test"]
    assert (found[:, 2] == 0).all() and (found[:, :2] > 0).all()


def test_simpleshot_by_hand():
    """Centre (0, 0); unit vectors right, up and left; (3, 1) is nearest to the right."""
    train = torch.tensor([[5.0, 0.0], [0.0, 3.0], [-5.0, -3.0]]), torch.tensor([0, 1, 3])
    tested = torch.tensor([[3.0, 1.0], [-1.0, -0.5]]), torch.tensor([0, 3])
    found = methods.simpleshot(train, {"test": tested}, 4)["test"]
    assert found.argmax(1).tolist() == [0, 3]
    assert (found[:, 2] == 0).all(), "nobody saw class 2"
    unit = np.array([3, 1]) / 10**0.5
    squares = [
        ((unit - mean) ** 2).sum() for mean in ((1, 0), (0, 1), np.array([-5, -3]) / 34**0.5)
    ]
    expected = np.exp(-np.array(squares)) / np.exp(-np.array(squares)).sum()
    np.testing.assert_allclose(found[0, [0, 1, 3]], expected, atol=1e-6)


def test_simpleshot_centres_on_the_mean_of_train():
    """Mean (10, 0); from there the rows lie right and left, from the origin all lie right."""
    train = torch.tensor([[11.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1])
    tested = torch.tensor([[12.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    found = methods.simpleshot(train, {"test": tested}, 2)["test"]
    near = 1 / (1 + np.exp(-4))
    np.testing.assert_allclose(found, [[near, 1 - near], [1 - near, near]], atol=1e-6)


def test_logreg_takes_the_strength_that_is_best_on_the_split_that_chooses():
    found, strength, iterations = methods.logreg(TRAIN, VAL, {"test": TEST}, 3)
    scores = {}
    for c in methods.STRENGTHS:
        peer = linear_model.LogisticRegression(C=c, max_iter=1000).fit(*TRAIN)
        scores[c] = sklearn_metrics.balanced_accuracy_score(VAL[1], peer.predict(VAL[0]))
    assert scores[strength] == max(scores.values()) > min(scores.values())
    assert strength == next(c for c in methods.STRENGTHS if scores[c] == scores[strength])
    peer = linear_model.LogisticRegression(C=strength, max_iter=1000).fit(*TRAIN)
    np.testing.assert_allclose(found["test"], peer.predict_proba(TEST[0]), atol=1e-6)
    assert iterations == peer.n_iter_.max() < methods.MAX_ITERATIONS


def test_logreg_without_a_choice_and_a_class_nobody_saw():
    two = TRAIN[0][TRAIN[1] > 0], TRAIN[1][TRAIN[1] > 0]
    found, strength, _ = methods.logreg(two, None, {"test": TEST}, 3)
    assert strength == 1.0 and (found["test"][:, 0] == 0).all()


def test_shots_are_so_many_of_each_class():
    labels = np.array([0, 1, 1, 0, 1, 0, 0])
    first = methods.draw_shots(labels, 2, np.random.default_rng(0))
    assert labels[first].tolist().count(0) == 2 == labels[first].tolist().count(1)
    assert first.tolist() == sorted(set(first.tolist()))
    draws = {tuple(methods.draw_shots(labels, 2, np.random.default_rng(s))) for s in range(20)}
    assert len(draws) > 5
