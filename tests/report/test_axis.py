"""Round numbers, and where values fall."""

import math

import pytest

from pathfm_cli.report import axis


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 40, ["0", "10", "20", "30", "40"]),
        (0.13, 0.14, ["0.130", "0.132", "0.134", "0.136", "0.138", "0.140"]),
        (0, 125_000, ["0", "25k", "50k", "75k", "100k", "125k"]),
        (0, 1e-5, ["0", "2e-6", "4e-6", "6e-6", "8e-6", "1e-5"]),
        (-1, 1, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (0.99991, 0.99995, ["0.99991", "0.99992", "0.99993", "0.99994", "0.99995"]),
        (123456.5, 123457.5, ["123456.6", "123456.8", "123457.0", "123457.2", "123457.4"]),
        (0.1, 0.2125, ["0.100", "0.125", "0.150", "0.175", "0.200"]),
    ],
)
def test_ticks_are_round_and_told_apart(low, high, said):
    ticks = axis.Axis(low, high, 0, 100).ticks()
    assert [text for _, text in ticks] == said
    assert all(float(text.replace("k", "e3")) == pytest.approx(v) for v, text in ticks)


def test_places():
    up = axis.Axis(10, 20, 200, 0)
    assert (up(10), up(20), up(12.5)) == (200, 0, 150)


def test_the_axis_shows_what_is_finite_with_room():
    found = axis.fit([1.0, math.nan, 3.0, math.inf], 0, 100, margin=0.1)
    assert (found.low, found.high) == pytest.approx((0.8, 3.2))


@pytest.mark.parametrize("values", [[], [math.nan], [0.0], [5.0, 5.0], [1e308, -1e308], [1e-300]])
def test_no_range_is_no_trouble(values):
    found = axis.fit(values, 0, 100)
    assert found.low < found.high and math.isfinite(found.high - found.low)
    assert 1 <= len(found.ticks()) <= 12
