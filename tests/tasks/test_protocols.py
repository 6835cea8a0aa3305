from __future__ import annotations

import math

import pytest

from pathfm_cli import errors
from pathfm_cli.tasks import protocols

PAPER = protocols.find("paper")


def test_paper_is_table_six():
    assert (PAPER.steps, PAPER.batch_size, PAPER.lr) == (12_500, 4096, 0.01)
    assert (PAPER.momentum, PAPER.nesterov, PAPER.patience) == (0.9, True, 1 / 20)


@pytest.mark.parametrize(
    ("rows", "batch", "lr", "per_epoch", "epochs", "patience"),
    [
        (268, 256, 6.25e-4, 2, 6250, 312),  # BACH
        (2_175, 256, 6.25e-4, 9, 1389, 69),  # MHIST
        (4_095, 256, 6.25e-4, 16, 782, 39),
        (4_096, 4096, 0.01, 1, 12_500, 625),
        (100_000, 4096, 0.01, 25, 500, 25),  # CRC
        (262_144, 4096, 0.01, 64, 196, 9),  # PCam
        (2 * 10**8, 4096, 0.01, 48_829, 1, 1),
    ],
)
def test_schedule(rows, batch, lr, per_epoch, epochs, patience):
    plan = protocols.schedule(PAPER, rows)
    assert (plan.batch_size, plan.steps_per_epoch, plan.max_epochs) == (batch, per_epoch, epochs)
    assert plan.patience_epochs == patience
    assert plan.lr == pytest.approx(lr, rel=1e-15)


def test_cosine_from_lr_to_zero():
    plan = protocols.schedule(PAPER, 10_000)
    assert plan.lr_at(0) == 0.01
    assert plan.lr_at(6_250) == pytest.approx(0.005)
    assert plan.lr_at(3_125) == pytest.approx(0.005 * (1 + math.sqrt(0.5)))
    assert plan.lr_at(12_500) == pytest.approx(0)


def test_unknown_protocol_has_a_suggestion():
    with pytest.raises(errors.UsageError) as caught:
        protocols.find("papr")
    assert caught.value.hint == "did you mean paper?"
