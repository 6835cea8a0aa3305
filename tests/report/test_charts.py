"""Charts: every point in its place, nothing that is not finite, names as text."""

import math
import re
from xml.etree import ElementTree

import pytest

from pathfm_cli.report import charts


def circles(figure):
    return [tuple(map(float, c)) for c in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', figure)]


def test_points_lie_where_their_numbers_say():
    """Four per cent of room at the sides, six above and below: 400 x 250, margins 52 12 10 40."""
    figure = charts.lines("loss", [charts.Series("a", [0, 10, 20], [1, 3, 2])])
    width, height = (400 - 52 - 12) / 1.08, (250 - 10 - 40) / 1.12
    left, bottom = 52 + 0.04 * width, 210 - 0.06 * height
    expected = [
        (left, bottom),
        (left + width / 2, bottom - height),
        (left + width, bottom - height / 2),
    ]
    assert circles(figure) == [pytest.approx(point, abs=0.06) for point in expected]


def test_long_numbers_beside_the_plot_lie_within_the_picture():
    """7.2 px a character is more than any common face takes at 12 px."""
    figure = charts.lines("a", [charts.Series("a", [0, 1], [-0.9, -0.9011])])
    said = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]*)<', figure)
    assert max(len(text) for _, text in said) == 8  # -0.90025
    assert all(float(x) - 7.2 * len(text) >= 0 for x, text in said)
    left = float(re.search(r'class="grid" x1="([\d.]+)"', figure)[1])
    assert all(left - 6 == pytest.approx(float(x)) for x, _ in said)
    assert min(x for x, _ in circles(figure)) > left


def test_figures_are_well_formed_and_names_are_text():
    evil = '<script>alert(1)</script>"&'
    series = [charts.Series(evil, [0, 1], [0, 1], [evil, evil]), charts.Series("b", [0], [1])]
    for figure in (
        charts.lines(evil, series, x=evil, levels=[(evil, 0.5)]),
        charts.scatter(evil, series, x=evil, y=""),
        charts.reliability(evil, [0.5, 0.9], [0.4, 1.0], [3, 1]),
    ):
        ElementTree.fromstring(figure)
        assert "<script" not in figure and "&lt;script&gt;" in figure


def test_what_is_not_finite_is_left_out():
    figure = charts.lines(
        "x", [charts.Series("a", [0, 1, 2, math.nan], [1, math.nan, math.inf, 1])]
    )
    assert len(circles(figure)) == 1 and "nan" not in figure and "inf" not in figure
    assert charts.lines("x", [charts.Series("a", [0], [math.nan])]) == ""
    assert charts.scatter("x", [], x="", y="") == ""


def test_long_curves_are_means_of_stretches():
    figure = charts.lines("x", [charts.Series("a", range(2400), [n % 10 for n in range(2400)])])
    (points,) = re.findall(r'<polyline [^>]*points="([^"]*)"', figure)
    heights = {place.split(",")[1] for place in points.split()}
    assert len(points.split()) == 240 and len(heights) == 1


def test_reliability_has_its_diagonal_and_leaves_out_empty_bins():
    figure = charts.reliability("r", [0.25, 0.0, 0.75], [0.5, 0.0, 0.75], [1, 0, 3])
    across, up = (lambda v: 52 + 336 * v), (lambda v: 210 - 200 * v)
    assert circles(figure) == [(across(0.25), up(0.5)), (across(0.75), up(0.75))]
    assert f'x1="{across(0):.1f}" y1="{up(0):.1f}" x2="{across(1):.1f}" y2="{up(1):.1f}"' in figure
    assert "sure 0.750, right 0.750: 3 predictions" in figure
