"""One axis of a chart: where round numbers lie, and where a value falls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """From values to places.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place of the smallest value, in the chart's units.
        end: place of the largest value.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About `count` round numbers within the axis, and how they are written."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next((s for s in _STEPS if s * power >= rough * (1 - 1e-9)), _STEPS[-1])
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        values = [number * step for number in range(first, last + 1)]
        decimals = max(0, -math.floor(math.log10(step))) + (f"{step / power:.1f}" == "2.5")
        largest = max(map(abs, values), default=0)
        full = [f"{v + 0.0:.{decimals if step < 10 else 0}f}" for v in values]
        short = [label(v) for v in values]
        plain = step >= 1e-4 and largest < 1e4
        # Short numbers that differ in no digit shown, as .99991 and .99992, are written in full.
        alike = len(set(short)) < len(short) and largest < 1e9
        return list(zip(values, full if plain or alike else short, strict=True))


def fit(values: Iterable[float], start: float, end: float, margin: float = 0.04) -> Axis:
    """An axis that shows all finite values, with some room at both ends.

    Values further from 0 than 1e300 are cut there; without any value the axis is 0 to 1.
    """
    finite = [max(-1e300, min(1e300, value)) for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = 0.05 * abs(low) or 0.5
        low, high = low - room, high + room
    room = margin * (high - low)
    return Axis(low - room, high + room, start, end)


def label(value: float) -> str:
    """A tick's number in short: 0.001, 25k, 2e-05."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    if 1e4 <= size < 1e6:
        return f"{value / 1000:.4g}k"
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
