"""Charts as inline SVG: curves, points, a reliability diagram. Colours follow the page's theme."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from pathfm_cli import page
from pathfm_cli.report import axis

WIDTH, HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
_GAP = 6
"""Between the numbers of the upright axis and the plot."""
_CHARACTER = 7.5
"""Width of a digit of the theme's 12 px type, at most."""
COLOURS = 8
"""Colours of the theme, `--c0` to `--c7`; more series begin again."""
MOST_POINTS = 240
"""Longer curves are drawn as means of equal stretches of points."""
MARKED_POINTS = 40
"""Curves of up to this many points show each of them."""

Numbers = Sequence[float]


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """Points with a name; values that are not finite are left out."""

    name: str
    x: Numbers
    y: Numbers
    labels: Sequence[str] = ()
    """What a pointer that rests on a point is told; the numbers where there is none."""
    colour: int | None = None
    """Number of the colour; its place among the series where there is none."""

    def points(self) -> list[tuple[float, float, str]]:
        """Finite points with their labels."""
        labels = self.labels or [""] * len(self.x)
        return [
            (x, y, text or f"{axis.label(x)}: {y:.4g}")
            for x, y, text in zip(self.x, self.y, labels, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x: str = "step",
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """Curves over `x`; `levels` are dashed lines across, as the value of a guess.

    Empty where no series has a finite point.
    """
    drawn = [(one, _thinned(one.points())) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    if not drawn:
        return ""
    across, up = _axes([points for _, points in drawn], [value for _, value in levels])
    parts = [_frame(across, up, x), _levels(levels, across, up)]
    for number, (one, points) in enumerate(drawn):
        places = [(across(at), up(value)) for at, value, _ in points]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        style = f'style="stroke:{_colour(one, number)}"'
        parts.append(f'<polyline class="curve" {style} points="{path}"/>')
        if len(points) <= MARKED_POINTS:
            parts += _dots(points, places, _colour(one, number), 2.5)
    names = [(one.name, _colour(one, number)) for number, (one, _) in enumerate(drawn)]
    return _figure(title, parts, names if len(names) > 1 else [], levels)


def scatter(title: str, series: Sequence[Series], *, x: str, y: str) -> str:
    """Points by two numbers; empty where no series has a finite one."""
    drawn = [(one, one.points()) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    if not drawn:
        return ""
    across, up = _axes([points for _, points in drawn], [])
    size = 2.2 if sum(len(points) for _, points in drawn) > 200 else 4
    parts = [_frame(across, up, x)]
    for number, (one, points) in enumerate(drawn):
        places = [(across(at), up(value)) for at, value, _ in points]
        parts += _dots(points, places, _colour(one, number), size)
    names = [(one.name, _colour(one, number)) for number, (one, _) in enumerate(drawn)]
    return _figure(f"{title}: {y} over {x}" if not title.endswith(y) else title, parts, names, ())


def reliability(title: str, confidence: Numbers, accuracy: Numbers, count: Numbers) -> str:
    """Accuracy over confidence by bin; the area of a dot is the bin's share of the rows."""
    total = sum(count) or 1
    across = axis.Axis(0, 1, _LEFT, WIDTH - _RIGHT)
    up = axis.Axis(0, 1, HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(across, up, "probability of the predicted class")]
    ends = f'x1="{across(0):.1f}" y1="{up(0):.1f}" x2="{across(1):.1f}" y2="{up(1):.1f}"'
    parts.append(f'<line class="level" {ends}/>')
    for sure, right, rows in zip(confidence, accuracy, count, strict=True):
        if rows:
            place = [(across(sure), up(right))]
            text = f"sure {sure:.3f}, right {right:.3f}: {rows:.0f} predictions"
            radius = 3 + 14 * math.sqrt(rows / total)
            parts += _dots([(sure, right, text)], place, "var(--c0)", radius)
    return _figure(title, parts, (), [("perfect calibration", 0.0)])


def _axes(
    drawn: Sequence[Sequence[tuple[float, float, str]]], levels: Numbers
) -> tuple[axis.Axis, axis.Axis]:
    flat = [point for points in drawn for point in points]
    up = axis.fit([value for _, value, _ in flat] + list(levels), HEIGHT - _BOTTOM, _TOP, 0.06)
    across = axis.fit([at for at, _, _ in flat], _left(up), WIDTH - _RIGHT)
    return across, up


def _left(up: axis.Axis) -> float:
    """Where the plot begins: right of the longest number beside it."""
    longest = max((len(said) for _, said in up.ticks()), default=0)
    return max(_LEFT, longest * _CHARACTER + _GAP + 2)


def _frame(across: axis.Axis, up: axis.Axis, x: str) -> str:
    parts = []
    ends = f'x1="{across.start}" x2="{across.end}"'
    for value, said in up.ticks():
        top = up(value)
        parts.append(
            f'<line class="grid" {ends} y1="{top:.1f}" y2="{top:.1f}"/>'
            f'<text x="{across.start - _GAP}" y="{top + 4:.1f}" text-anchor="end">{said}</text>'
        )
    for value, said in across.ticks():
        at = f'x="{across(value):.1f}" y="{HEIGHT - _BOTTOM + 16}"'
        parts.append(f'<text {at} text-anchor="middle">{said}</text>')
    middle = (across.start + across.end) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{page.text(x)}</text>')
    return "".join(parts)


def _levels(levels: Sequence[tuple[str, float]], across: axis.Axis, up: axis.Axis) -> str:
    return "".join(
        f'<line class="level" x1="{across.start}" x2="{across.end}" '
        f'y1="{up(value):.1f}" y2="{up(value):.1f}"/>'
        for _, value in levels
    )


def _dots(
    points: Sequence[tuple[float, float, str]],
    places: Sequence[tuple[float, float]],
    colour: str,
    radius: float,
) -> list[str]:
    return [
        f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{radius:.1f}" style="fill:{colour}">'
        f"<title>{page.text(text)}</title></circle>"
        for (_, _, text), (left, top) in zip(points, places, strict=True)
    ]


def _figure(
    title: str,
    parts: Sequence[str],
    names: Sequence[tuple[str, str]],
    levels: Sequence[tuple[str, float]],
) -> str:
    keys = [
        f'<span class="key"><i style="background:{colour}"></i>{page.text(name)}</span>'
        for name, colour in names
    ]
    keys += [
        f'<span class="key"><i class="dash"></i>{page.text(name)}</span>' for name, _ in levels
    ]
    return (
        f"<figure><figcaption>{page.text(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{page.text(title)}">'
        f"{''.join(parts)}</svg><div>{''.join(keys)}</div></figure>"
    )


def _colour(series: Series, number: int) -> str:
    return f"var(--c{(number if series.colour is None else series.colour) % COLOURS})"


def _thinned(points: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """At most `MOST_POINTS`: means of stretches of equally many."""
    if len(points) <= MOST_POINTS:
        return points
    bounds = [len(points) * n // MOST_POINTS for n in range(MOST_POINTS + 1)]
    thin = []
    for first, last in zip(bounds, bounds[1:], strict=False):
        part = points[first:last]
        x, y = (sum(point[k] for point in part) / len(part) for k in (0, 1))  # type: ignore[misc]
        thin.append((x, y, ""))
    return thin
