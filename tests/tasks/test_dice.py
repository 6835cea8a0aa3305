"""Every definition against hand counts, written-out formulas and, where installed, its home."""

from __future__ import annotations

import numpy as np
import pytest

from pathfm_cli import errors
from pathfm_cli.model import shim
from pathfm_cli.tasks import dice, metrics

A = np.array([[50, 5, 0], [10, 20, 0], [0, 5, 10]])
B = np.array([[90, 0, 0], [0, 0, 0], [0, 0, 0]])
C = np.array([[80, 0, 0], [4, 6, 0], [0, 0, 0]])
NAMES = ["background", "x", "y"]


def tables(**images):
    """One run; every image is its own only window."""
    stitched = {name: table[None] for name, table in images.items()}
    return dice.Tables(stitched, {name: table[None] for name, table in stitched.items()})


def scored(**images):
    return dice.numbers(dice.rows(tables(**images), NAMES, [0], seed=0))


def test_every_definition_by_hand():
    found = scored(a=A, b=B, c=C)
    # pooled: x has 26 hits of 40 true and 36 predicted, y 10 of 15 and 10.
    assert found["dice_micro_foreground"] == pytest.approx((52 + 20) / (76 + 25))
    assert found["dice:x"] == pytest.approx(52 / 76)
    assert found["dice:y"] == pytest.approx(20 / 25)
    assert found["dice_macro_foreground"] == pytest.approx((52 / 76 + 20 / 25) / 2)
    # 5 pixels of y were called x: right as foreground. 41 of 55 true and 46 predicted.
    assert found["dice_binary_foreground"] == pytest.approx(2 * 41 / (55 + 46))
    w = {1: 1 / 40**2, 2: 1 / 15**2}  # true sizes 40 and 15
    expected = 2 * (w[1] * 26 + w[2] * 10) / (w[1] * 76 + w[2] * 25)
    assert found["dice_generalised_square"] == pytest.approx(expected)
    expected = 2 * (26 / 40 + 10 / 15) / (76 / 40 + 25 / 15)
    assert found["dice_generalised_linear"] == pytest.approx(expected)
    # image b has no foreground and takes no part; c has no y.
    assert found["dice_mean_of_images"] == pytest.approx((60 / 85 + 12 / 16) / 2)
    x_of_a, y_of_a, x_of_c = 40 / 60, 20 / 25, 12 / 16
    assert found["dice_macro_of_images"] == pytest.approx(((x_of_a + y_of_a) / 2 + x_of_c) / 2)
    assert found["iou:x"] == pytest.approx(26 / 50)
    assert found["iou:background"] == pytest.approx(220 / 239)
    assert found["iou_macro"] == pytest.approx((220 / 239 + 26 / 50 + 10 / 15) / 3)
    assert found["iou_macro_foreground"] == pytest.approx((26 / 50 + 10 / 15) / 2)
    assert found["iou_micro_foreground"] == pytest.approx((26 + 10) / (50 + 15))
    assert found["pixel_accuracy"] == pytest.approx(256 / 280)
    assert found["foreground_share"] == pytest.approx(55 / 280)


def test_a_class_that_is_only_predicted_counts_unless_monai_looks():
    only = np.array([[80, 0, 5], [4, 6, 0], [0, 0, 0]])
    found = scored(a=only)
    assert found["dice_macro_of_images"] == pytest.approx((12 / 16 + 0) / 2)
    assert found["dice_monai"] == pytest.approx(12 / 16)
    # A class without truth has no size to weigh it by.
    assert found["dice_generalised_square"] == pytest.approx(12 / 16)


def test_the_table_names_images():
    table = dice.table(dice.rows(tables(a=A, b=B), NAMES, [0], 0))
    images = table.filter(table["image"].is_not_null())
    assert images["image"].to_list() == ["a", "b"]
    assert images["value"].to_list() == [pytest.approx(60 / 85), None]
    assert set(images["metric"]) == {dice.HEADLINE}


def test_windows_are_scored_by_themselves():
    both = dice.Tables({"a": A[None]}, {"a": np.stack([A, C])[:, None]})
    found = dice.numbers(dice.rows(both, NAMES, [0], 0))
    assert found["dice_micro_foreground"] == pytest.approx(60 / 85)
    assert found["dice_micro_foreground:windows"] == pytest.approx((60 + 12) / (85 + 16))
    assert found["dice_mean_of_images:windows"] == pytest.approx((60 / 85 + 12 / 16) / 2)
    assert "dice:x:windows" not in found


def test_runs_have_their_own_rows_and_only_the_kept_ones_a_mean():
    runs = np.stack([A, B, C])
    table = dice.table(dice.rows(dice.Tables({"a": runs}, {"a": runs[None]}), NAMES, [0, 2], 0))
    headline = table.filter((table["metric"] == dice.HEADLINE) & (table["split"] == "test"))
    by_run = dict(headline.filter(headline["image"].is_null())["run", "value"].iter_rows())
    assert by_run == {0: 60 / 85, 2: 12 / 16, None: pytest.approx((60 / 85 + 12 / 16) / 2)}
    found = dice.numbers(table.iter_rows())
    assert found["dice_micro_foreground_std"] == pytest.approx(abs(60 / 85 - 12 / 16) / 2**0.5)


def test_intervals_and_images_are_of_the_kept_runs_alone():
    rng = np.random.default_rng(0)
    first, last = rng.integers(1, 60, (2, 5, 3, 3))
    junk = np.broadcast_to([[9, 0, 0], [9, 0, 0], [9, 0, 0]], (5, 3, 3))

    def rows(runs, kept):
        stitched = {str(i): np.stack([run[i] for run in runs]) for i in range(5)}
        found = dice.rows(
            dice.Tables(stitched, {k: v[None] for k, v in stitched.items()}), NAMES, kept, 0
        )
        return [row for row in found if row[2] is None and row[0] != "foreground_share"]

    kept = rows([first, junk, last], [0, 2])
    assert kept == rows([first, last], [0, 1]) != rows([first, junk, last], [0, 1, 2])
    of_image = [row[3] for row in kept if row[4] == "3"]
    expected = [metrics.dice_micro_foreground(run[3]) for run in (first, last)]
    assert of_image == [pytest.approx(np.mean(expected))]


def test_intervals_are_those_of_a_bootstrap_over_images():
    rng = np.random.default_rng(0)
    images = {str(i): rng.integers(1, 60, (3, 3)) for i in range(12)}
    found = scored(**images)
    low, high = found["dice_micro_foreground_low"], found["dice_micro_foreground_high"]
    assert low < found["dice_micro_foreground"] < high
    stack = np.stack(list(images.values()))
    draws = [
        metrics.dice_micro_foreground(stack[rng.integers(12, size=12)].sum(axis=0))
        for _ in range(4000)
    ]
    expected = np.quantile(draws, [0.025, 0.975])
    assert (low, high) == (
        pytest.approx(expected[0], abs=0.01),
        pytest.approx(expected[1], abs=0.01),
    )
    assert "dice_micro_foreground_low" not in scored(a=A)


def test_a_class_that_never_occurs_takes_no_part():
    found = scored(c=C)
    assert "dice:y" not in found
    assert found["dice_macro_foreground"] == found["dice:x"] == pytest.approx(12 / 16)


def test_no_foreground_is_an_error():
    with pytest.raises(errors.InputError, match="no foreground"):
        scored(b=B)
    with pytest.raises(errors.InputError, match="No image of test"):
        scored()


def maps(count=5, classes=4):
    """Truth and prediction (N, 16, 16); class 3 occurs in some images only."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, classes, (count, 16, 16))
    truth[:3][truth[:3] == 3] = 0
    predicted = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 3, truth.shape))
    return truth, predicted


def of_maps(truth, predicted, classes=4):
    found = {
        str(i): metrics.confusion(t, p, classes)[None]
        for i, (t, p) in enumerate(zip(truth, predicted, strict=True))
    }
    both = dice.Tables(found, {name: table[None] for name, table in found.items()})
    return dice.numbers(dice.rows(both, ["0", "1", "2", "3"], [0], 0))


def test_torchmetrics_agrees():
    torch = pytest.importorskip("torch")
    shim.apply()
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    truth, predicted = (torch.from_numpy(each) for each in maps())
    found = of_maps(*maps())
    for average, name in (("micro", "micro_foreground"), ("macro", "macro_foreground")):
        metric = segmentation.DiceScore(
            4,
            include_background=False,
            average=average,
            aggregation_level="global",
            input_format="index",
        )
        assert found[f"dice_{name}"] == pytest.approx(float(metric(predicted, truth)), rel=1e-5)


def test_monai_agrees():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    truth, predicted = (
        torch.nn.functional.one_hot(torch.from_numpy(each), 4).permute(0, 3, 1, 2)
        for each in maps()
    )
    metric = monai.DiceMetric(include_background=False, reduction="mean", ignore_empty=True)
    metric(predicted, truth)
    found = of_maps(*maps())
    assert found["dice_monai"] == pytest.approx(float(metric.aggregate()), rel=1e-5)
