"""Limits that a script sets on ODCorr: missed ones end it with exit code 5."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import scores

_HINT = "docs/odcorr.md tells what high and low values mean"
_MAKE = "pathfm odcorr EMBEDDINGS --json > baseline.json"
MOST_BYTES = 64 << 20
"""Largest JSON document that is read as a baseline."""


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier measurement, and how much higher a new one may be."""

    path: Path
    odcorr: float
    n: int
    split: str | None
    """Empty: all rows. None where it is not known, as of a record from a pipe."""
    images: str
    """Id of the images; empty where it is not known."""
    tolerance: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What ODCorr must not pass; None is no limit."""

    minimum: float | None = None
    maximum: float | None = None
    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        for name, limit in (("--min", self.minimum), ("--max", self.maximum)):
            if limit is not None and not 0 <= limit <= 1:
                raise errors.UsageError(f"{name} {limit:g} is not between 0 and 1.", "--max 0.5")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise errors.UsageError(
                f"--min {self.minimum:g} is above --max {self.maximum:g}.", "--max 0.5"
            )

    def check(self, value: float) -> None:
        """Compare ODCorr with the limits.

        Raises:
            errors.GateFailed: it lies outside, or is not a number.
        """
        if self.maximum is not None and not value <= self.maximum:
            raise errors.GateFailed(f"ODCorr {value:.4f} is above --max {self.maximum:g}.", _HINT)
        if self.minimum is not None and not value >= self.minimum:
            raise errors.GateFailed(f"ODCorr {value:.4f} is below --min {self.minimum:g}.", _HINT)
        old = self.baseline
        if old is not None and not value <= old.odcorr + old.tolerance:
            raise errors.GateFailed(
                f"ODCorr {value:.4f} is {value - old.odcorr:.4f} above the {old.odcorr:.4f} of "
                f"{old.path}; --tolerance is {old.tolerance:g}.",
                _HINT,
            )

    def comparable(self, n: int, split: str | None, images: str) -> None:
        """Refuse a baseline that was measured on other images.

        Args:
            n: rows of the new measurement.
            split: the split it was asked for.
            images: id of its images; empty where it is not known.

        Raises:
            errors.UsageError: rows, split or images differ.
        """
        old = self.baseline
        if old is None:
            return
        pairs: list[tuple[str, Any, Any]] = [("rows", old.n, n)]
        pairs += [("split", old.split or "all", split or "all")] if old.split is not None else []
        pairs += [("images", old.images, images)] if old.images and images else []
        for name, one, two in pairs:
            if one != two:
                raise errors.UsageError(
                    f"{old.path} does not compare: {name} {one}, now {two}.",
                    "measure both on the same images and split",
                )


def limits(
    minimum: float | None,
    maximum: float | None,
    baseline: Path | None,
    tolerance: float | None,
) -> Limits:
    """The limits that a command line names.

    Args:
        minimum: of ODCorr.
        maximum: of ODCorr.
        baseline: `scores` of an earlier `odcorr`, its JSON document, or a record it printed.
        tolerance: how far above the baseline ODCorr may lie; goes with `baseline`.

    Raises:
        errors.UsageError: limits that nothing can meet, or one of the last two without the other.
        errors.InputError: the baseline cannot be read, or is no ODCorr.
    """
    if (baseline is None) != (tolerance is None):
        raise errors.UsageError(
            "--baseline and --tolerance go together.", "--baseline old.json --tolerance 0.02"
        )
    if baseline is None or tolerance is None:
        return Limits(minimum=minimum, maximum=maximum)
    if not 0 <= tolerance < math.inf:
        raise errors.UsageError(f"--tolerance {tolerance:g} is not 0 or more.", "--tolerance 0.02")
    old = _read(baseline, tolerance)
    return Limits(minimum=minimum, maximum=maximum, baseline=old)


def _read(path: Path, tolerance: float) -> Baseline:
    table = scores.place(path).table
    if path.is_dir() or table.suffix == path.suffix:
        header = artifacts.read_header(table, "scores")
        metrics, settings = header.metrics, header.settings
    else:
        document = _document(path)
        metrics, settings = document.get("metrics", {}), document.get("settings", {})
    try:
        value, n = float(metrics["odcorr"]), int(metrics["n"])
        split, images = settings.get("split"), settings.get("scored", {}).get("images", "")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.InputError(f"{path} holds no result of odcorr.", _MAKE) from error
    if not 0 <= value <= 1:
        raise errors.InputError(f"{path} holds no ODCorr: {value:g}.", _MAKE)
    return Baseline(path, value, n, split, images, tolerance)


def _document(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise errors.InputError(f"{path} does not exist or is no file.", _MAKE)
    if path.stat().st_size > MOST_BYTES:
        raise errors.InputError(f"{path} is too large for a record of odcorr.", _MAKE)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise errors.InputError(f"{path} is no JSON record of odcorr.", _MAKE) from error
    if not isinstance(document, dict) or document.get("kind") != "scores":
        raise errors.InputError(f"{path} is no JSON record of odcorr.", _MAKE)
    return document
