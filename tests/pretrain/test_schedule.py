"""Schedules against facebookresearch/dino's numpy arrays, at every step."""

import numpy as np
import pytest

from pathfm_cli.pretrain import schedule


def cosine_scheduler(base, final, epochs, per_epoch, warmup_epochs=0, start_warmup=0.0):
    """`utils.cosine_scheduler` of facebookresearch/dino, by its definition."""
    warmup_steps = warmup_epochs * per_epoch
    warmup = np.linspace(start_warmup, base, warmup_steps) if warmup_epochs else np.array([])
    steps = np.arange(epochs * per_epoch - warmup_steps)
    rest = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([warmup, rest])


@pytest.mark.parametrize(
    ("base", "final", "epochs", "per_epoch", "warmup"),
    [
        (5e-4, 1e-6, 10, 7, 3),
        (0.04, 0.4, 10, 7, 0),
        (0.996, 1.0, 5, 3, 0),
        (1.0, 0.0, 2, 1, 1),
    ],
)
def test_cosine_equals_dino_at_every_step(base, final, epochs, per_epoch, warmup):
    ours = schedule.Cosine(
        start=base, end=final, steps=epochs * per_epoch, warmup_steps=warmup * per_epoch
    )
    expected = cosine_scheduler(base, final, epochs, per_epoch, warmup)
    np.testing.assert_allclose([ours(t) for t in range(len(expected))], expected, rtol=1e-12)


def test_cosine_stays_at_its_end():
    ours = schedule.Cosine(start=1.0, end=0.25, steps=10)
    assert ours(10) == ours(99) == 0.25


def test_temperature_equals_dino_at_every_step():
    ours = schedule.EpochRamp(start=0.04, end=0.07, epochs=4, steps_per_epoch=3)
    per_epoch = np.concatenate([np.linspace(0.04, 0.07, 4), np.ones(2) * 0.07])
    np.testing.assert_allclose([ours(t) for t in range(18)], np.repeat(per_epoch, 3), rtol=1e-12)


def test_temperature_without_ramp_is_constant():
    ours = schedule.EpochRamp(start=0.01, end=0.04, epochs=0, steps_per_epoch=3)
    assert [ours(0), ours(50)] == [0.04, 0.04]


def test_lr_rule_is_linear_in_the_batch():
    assert schedule.scaled_lr(5e-5, 1024) == pytest.approx(2e-4)
