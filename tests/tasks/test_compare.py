from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from pathfm_cli import errors
from pathfm_cli.tasks import compare, predictions


def made(right, truth, ids=None, units=None, classes=("a", "b")):
    """Two classes; a run per row of `right`, sure of what it says."""
    predicted = np.where(right, truth, 1 - truth)
    return predictions.Predictions(
        name="x",
        ids=[f"i{n}" for n in range(len(truth))] if ids is None else ids,
        classes=classes,
        truth_N=truth,
        units_N=np.arange(len(truth)) if units is None else units,
        predicted_RN=predicted,
        probability_RNC=np.eye(2)[predicted],
    )


def pair(rows=400, gain=0.1, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, rows)
    weak = rng.random((3, rows)) < 0.7
    strong = weak | (rng.random((3, rows)) < gain)
    return made(strong, truth), made(weak, truth)


def test_mcnemar_is_the_exact_binomial_test():
    assert compare.mcnemar(0, 0) == 1.0
    assert compare.mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert compare.mcnemar(7, 3) == compare.mcnemar(3, 7)


def test_the_interval_is_that_of_paired_differences():
    """One class: the difference is a mean, with a known standard error."""
    rng = np.random.default_rng(3)
    truth = np.zeros(500, dtype=np.int64)
    right = rng.random((2, 1, 500)) < np.array([0.8, 0.7])[:, None, None]
    found = compare.compare(made(right[0], truth), made(right[1], truth))
    change = right[0, 0].astype(float) - right[1, 0]
    error = change.std() / 500**0.5
    assert found.difference == pytest.approx(change.mean())
    assert found.low == pytest.approx(change.mean() - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(change.mean() + 1.96 * error, abs=0.25 * error)
    normal = 2 * stats.norm.sf(change.mean() / error)
    assert found.p_bootstrap == pytest.approx(normal, abs=0.02)
    assert (found.first_only, found.second_only) == ((change > 0).sum(), (change < 0).sum())


def test_the_better_one_is_found_and_the_same_one_is_not():
    strong, weak = pair()
    found = compare.compare(strong, weak)
    assert found.difference > 0 and found.low > 0 and found.p_bootstrap <= 0.01
    assert found.p_mcnemar < 0.01
    turned = compare.compare(weak, strong)
    assert (turned.difference, turned.low) == pytest.approx((-found.difference, -found.high))
    same = compare.compare(weak, weak)
    assert (same.low, same.high, same.p_bootstrap, same.p_mcnemar) == (0.0, 0.0, 1.0, 1.0)


def test_images_are_matched_by_id_in_any_order_and_classes_by_name():
    strong, weak = pair(60)
    order = np.random.default_rng(1).permutation(60)
    shuffled = made(
        weak.predicted_RN[:, order] == weak.truth_N[order],
        1 - weak.truth_N[order],
        ids=[f"i{n}" for n in order],
        classes=("b", "a"),
    )
    plain = compare.compare(strong, weak)
    assert compare.compare(strong, shuffled) == plain
    fewer = dataclasses.replace(
        shuffled,
        ids=[*(shuffled.ids or [])[:-1], "other"],
    )
    found = compare.compare(strong, fewer)
    assert found.images == 59 and "1 images are only here and 1 only in x" in found.notes[0]


def test_patients_are_resampled_whole():
    strong, weak = pair(400, gain=0.05)
    units = np.repeat(np.arange(8), 50)
    alone = compare.compare(strong, weak)
    whole = compare.compare(dataclasses.replace(strong, units_N=units), weak)
    assert (alone.units, whole.units) == (400, 8)
    assert whole.difference == alone.difference and whole.low != alone.low


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "names no images"),
        ({"ids": ["i0"] * 10}, "an image twice"),
        ({"ids": [f"j{n}" for n in range(10)]}, "no image in common"),
        ({"classes": ("a", "c")}, "other classes: a, c"),
        ({"truth_N": np.zeros(10, dtype=np.int64)}, "another label"),
    ],
)
def test_what_cannot_be_compared(change, message):
    truth = np.arange(10) % 2
    one = made(np.ones((1, 10), dtype=bool), truth)
    with pytest.raises(errors.InputError, match=message):
        compare.compare(one, dataclasses.replace(one, **change))
