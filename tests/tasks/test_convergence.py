from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pathfm_cli.tasks import convergence, decoder, segmentation, tokens

TRAINING = segmentation.Training(epochs=2, batch_size=4)


class Fixed(torch.nn.Module):
    """A decoder that says class 1 wherever its token is above its level."""

    def __init__(self, level):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(float(level)))

    def loss(self, grid, labels):
        return self.level * 0 + 1

    def shares(self, grid, size_px):
        found = (grid[..., 0] > self.level).float()[:, None]
        return decoder.enlarge(torch.cat([1 - found, found], 1), size_px)


def crops():
    """A quarter of the pixels is class 1; their tokens are 1, all others 0."""
    grid = torch.zeros((4, 2, 2, 1))
    grid[:, 0, 0] = 1
    labels = grid[..., 0].to(torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return tokens.Crops(grid, None, labels, lambda images: images)


def attempts(monkeypatch, levels, **config):
    waiting = iter(levels)
    monkeypatch.setattr(decoder, "build", lambda *given: Fixed(next(waiting)))
    asked = segmentation.Config(training=TRAINING, **config)
    return list(convergence.attempts(crops(), 2, asked, lambda more: None)), asked


def test_the_best_map_of_one_class():
    # 30 of 100 pixels are class 1, 10 class 2: all of class 1 has 2 x 30 / (40 + 100).
    table = np.array([[60, 0, 0], [10, 20, 0], [10, 0, 0]])
    assert convergence.constant_dice(table) == pytest.approx(60 / 140)


def test_a_run_converged_if_it_beats_the_best_map_of_one_class(monkeypatch):
    found, config = attempts(monkeypatch, [0.5, 2.0, -1.0], runs=3)
    assert [one.converged for one in found] == [True, False, False]
    assert [one.train_dice for one in found] == [
        pytest.approx(1.0, abs=0.2),
        0.0,
        pytest.approx(2 * 0.25 / (0.25 + 1)),
    ]
    assert all(one.constant_dice == pytest.approx(0.4) for one in found)
    assert found[1].said().startswith("run 1 did not converge: Dice 0.000 on its training crops")
    assert convergence.kept(found, config) == [0, 1, 2]
    assert [(one.number, one.seed) for one in found] == [(0, 0), (1, 1), (2, 2)]


def test_keep_converged_tries_on_and_keeps_the_good_ones(monkeypatch):
    found, config = attempts(
        monkeypatch, [2.0, 0.5, 2.0, 0.5, 0.5], runs=2, keep_converged=True, seed=7
    )
    assert [one.converged for one in found] == [False, True, False, True]
    assert convergence.kept(found, config) == [1, 3]
    assert [one.seed for one in found] == [7, 8, 9, 10]


def test_attempts_end_at_three_times_the_runs(monkeypatch):
    found, config = attempts(monkeypatch, [2.0] * 9, runs=2, keep_converged=True)
    assert len(found) == 6 and convergence.kept(found, config) == []


def test_a_loss_that_is_not_finite_did_not_converge(monkeypatch):
    monkeypatch.setattr(Fixed, "loss", lambda self, grid, labels: self.level * math.nan)
    found, _ = attempts(monkeypatch, [0.5])
    assert not found[0].converged and math.isnan(found[0].train_dice)
    assert found[0].said() == "run 0 diverged in epoch 1"
    assert found[0].told()["losses"] == [None]
