"""Micrometres per pixel: where they may come from, in order, and when they are believed.

Order: the vendor's tag, OME PhysicalSize, the TIFF resolution tags if plausible, then the nominal
objective (40x = 0.25 um/px). A vendor value that is implausible is reported, not passed over.
"""

from __future__ import annotations

import dataclasses
import math

from pathfm_cli import errors

LOWEST = 0.05
HIGHEST = 20.0
MAX_ANISOTROPY = 0.02
"""Largest relative difference of x and y: pathfm takes square pixels."""
OBJECTIVE_MPP = 10.0
"""mpp times objective power: 40x is 0.25 um/px by convention."""

_UM_PER_UNIT = {2: 25400.0, 3: 10000.0}


@dataclasses.dataclass(frozen=True, slots=True)
class Resolution:
    """Trusted um/px at level 0 and its source, or None and `problem` in words."""

    mpp: float | None
    source: str | None
    problem: str = ""


def plausible(mpp: float) -> bool:
    """Whether a microscope slide can have this resolution (0.05 to 20 um/px)."""
    return math.isfinite(mpp) and LOWEST <= mpp <= HIGHEST


def from_tags(x_per_unit: float, y_per_unit: float, unit: int) -> tuple[float, float]:
    """um/px of TIFF's XResolution, YResolution (pixels per unit) and ResolutionUnit; 0.0 if none.

    Args:
        x_per_unit: XResolution.
        y_per_unit: YResolution.
        unit: 2 inch, 3 centimetre, else no length.
    """
    scale = _UM_PER_UNIT.get(unit, 0.0)
    return (
        scale / x_per_unit if x_per_unit > 0 else 0.0,
        scale / y_per_unit if y_per_unit > 0 else 0.0,
    )


def resolve(
    declared: tuple[float, float] | None,
    declared_source: str,
    tags: tuple[float, float],
    objective: float | None,
) -> Resolution:
    """Choose the resolution of a slide.

    Args:
        declared: (x, y) um/px that the vendor or OME states; None if they state nothing.
        declared_source: `aperio` or `ome`.
        tags: (x, y) um/px of the resolution tags, 0.0 for none.
        objective: nominal power, or None.
    """
    if declared is not None:
        return _square(declared, declared_source)
    if all(plausible(value) for value in tags):
        return _square(tags, "resolution-tag")
    if objective is not None and plausible(OBJECTIVE_MPP / objective):
        return Resolution(OBJECTIVE_MPP / objective, "appmag")
    if any(tags):
        return Resolution(None, None, f"the resolution tags claim {tags[0]:.4g} um/px")
    return Resolution(None, None, "the file states none")


def parse_override(text: str) -> float:
    """Read an `--mpp-override` number.

    Raises:
        errors.UsageError: no number, or not 0.05 to 20.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not plausible(value):
        raise errors.UsageError(
            f"--mpp-override {text!r} is no mpp between {LOWEST} and {HIGHEST:g}.",
            "micrometres per pixel, not a magnification: --mpp-override SLIDE=0.25",
        )
    return value


def _square(pair: tuple[float, float], source: str) -> Resolution:
    x, y = pair
    if not (plausible(x) and plausible(y)):
        return Resolution(None, None, f"{source} states {x:.4g} x {y:.4g} um/px")
    if abs(x - y) > MAX_ANISOTROPY * max(x, y):
        return Resolution(None, None, f"pixels are not square: {x:.4g} x {y:.4g} um")
    return Resolution(x if x == y else (x + y) / 2, source)
