from __future__ import annotations

import numpy as np
import pytest

from pathfm_cli import errors
from pathfm_cli.tasks import dice

A = np.array([[50, 5, 0], [10, 20, 0], [0, 5, 10]])
B = np.array([[90, 0, 0], [0, 0, 0], [0, 0, 0]])
C = np.array([[80, 0, 0], [4, 6, 0], [0, 0, 0]])


def test_every_definition_by_hand():
    found = dice.numbers(dice.rows({"a": A, "b": B, "c": C}, ["background", "x", "y"]))
    # pooled: x has 26 hits of 40 true and 36 predicted, y 10 of 15 and 10.
    assert found["dice_micro_foreground"] == pytest.approx((52 + 20) / (76 + 25))
    assert found["dice:x"] == pytest.approx(52 / 76)
    assert found["dice:y"] == pytest.approx(20 / 25)
    assert found["dice_macro_foreground"] == pytest.approx((52 / 76 + 20 / 25) / 2)
    # image b has no foreground and takes no part.
    assert found["dice_mean_of_images"] == pytest.approx((60 / 85 + 12 / 16) / 2)
    assert found["iou:x"] == pytest.approx(26 / 50)
    assert found["iou:background"] == pytest.approx(220 / 239)
    assert found["iou_macro"] == pytest.approx((220 / 239 + 26 / 50 + 10 / 15) / 3)
    assert found["pixel_accuracy"] == pytest.approx(256 / 280)
    assert found["foreground_share"] == pytest.approx(55 / 280)


def test_the_table_names_images():
    table = dice.table(dice.rows({"a": A, "b": B}, ["background", "x", "y"]))
    images = table.filter(table["image"].is_not_null())
    assert images["image"].to_list() == ["a", "b"]
    assert images["value"].to_list() == [pytest.approx(60 / 85), None]
    assert set(images["metric"]) == {dice.HEADLINE}


def test_a_class_that_never_occurs_takes_no_part():
    found = dice.numbers(dice.rows({"c": C}, ["background", "x", "y"]))
    assert "dice:y" not in found
    assert found["dice_macro_foreground"] == found["dice:x"] == pytest.approx(12 / 16)


def test_no_foreground_is_an_error():
    with pytest.raises(errors.InputError, match="no foreground"):
        dice.rows({"b": B}, ["background", "x", "y"])
    with pytest.raises(errors.InputError, match="No image of test"):
        dice.rows({}, ["background", "x", "y"])
