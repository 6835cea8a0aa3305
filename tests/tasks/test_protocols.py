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


@pytest.mark.parametrize(
    ("name", "rows", "batch", "lr", "patience"),
    [
        ("eva-0.0.2", 268, 256, 6.25e-4, 400),
        ("eva-0.0.2", 2_175, 256, 6.25e-4, 51),
        ("eva-0.0.2", 100_000, 4096, 0.01, 24),
        ("eva-0.0.2", 262_144, 4096, 0.01, 9),
        ("eva-0.0.2", 50_000, 4096, 0.01, 48),
        ("eva-0.4", 268, 256, 3e-4, 1250),
        ("eva-0.4", 2_175, 256, 3e-4, 278),
        ("eva-0.4", 100_000, 256, 3e-4, 7),
        ("eva-0.4", 262_144, 256, 3e-4, 3),
    ],
)
def test_what_kaiko_eva_shipped(name, rows, batch, lr, patience):
    plan = protocols.schedule(protocols.find(name), rows)
    assert (plan.batch_size, plan.patience_epochs) == (batch, patience)
    assert plan.lr == pytest.approx(lr)


@pytest.mark.parametrize(("name", "rows"), [("eva-0.0.2", 268), ("eva-0.4", 600)])
def test_learning_rates_equal_torch_schedulers(name, rows):
    import torch

    plan = protocols.schedule(protocols.find(name), rows)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=plan.lr)
    if name == "eva-0.0.2":
        peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=12_500)
    else:
        peer = torch.optim.lr_scheduler.ConstantLR(optimiser)
    for epoch in range(8):
        for step in range(plan.steps_per_epoch):
            found = plan.lr_at(epoch * plan.steps_per_epoch + step)
            assert found == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        peer.step()


def test_eva_hardly_lets_the_rate_fall():
    """End factors 0.50, 0.996, 0.970 and 0.999 of BACH, CRC, MHIST and PCam."""
    ends = []
    for rows in (268, 100_000, 2_175, 262_144):
        plan = protocols.schedule(protocols.find("eva-0.0.2"), rows)
        ends.append(round(plan.lr_at(12_499) / plan.lr, 3))
    assert ends == [0.5, 0.996, 0.97, 0.999]


def test_selection_has_three_names():
    with pytest.raises(errors.UsageError, match="--select best is none of val, test, last"):
        protocols.Config(select="best")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "knm"}, "no method 'knm'"),
        ({"method": "knn", "lr_scales": (2.0,)}, "knn has no learning rate"),
        ({"method": "knn", "protocol": "eva-0.4"}, "is one of --method linear"),
        ({"lr_scales": (1.0, 2.0)}, "other than 1"),
    ],
)
def test_what_does_not_go_together(values, message):
    with pytest.raises(errors.UsageError, match=message):
        protocols.Config(**values)


def test_settings_say_what_has_a_meaning():
    linear = protocols.Config().settings()
    assert linear["protocol"]["name"] == "paper" and "neighbours" not in linear
    knn = protocols.Config(method="knn", folds=5).settings()
    assert (knn["neighbours"], knn["runs"], knn["by"]) == (20, 1, "group")
    assert not {"protocol", "lr_scales", "train", "test"} & set(knn)
    assert "by" not in linear and protocols.Config(by="slide").settings()["by"] == "slide"
    assert protocols.Config(method="knn", shots=3).settings()["runs"] == 5
