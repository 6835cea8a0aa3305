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
MAX_CONSTANT = 0.01
"""Share of constant rows that a gate lets pass unless told otherwise: they have no correlation, so
that ODCorr says nothing of an encoder that maps most images to one number."""
MOST_BYTES = 64 << 20
"""Largest JSON document that is read as a baseline."""


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier measurement, and how much higher a new one may be."""

    path: Path
    odcorr: float
    rows: int
    """Embeddings it was measured on, constant ones included."""
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
    constant: float | None = None
    """Largest share of constant rows."""

    def __post_init__(self) -> None:
        given = {"--min": self.minimum, "--max": self.maximum, "--max-constant": self.constant}
        for name, limit in given.items():
            if limit is not None and not 0 <= limit <= 1:
                raise errors.UsageError(f"{name} {limit:g} is not between 0 and 1.", f"{name} 0.5")
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

    def check_constant(self, rows: int, constant_rows: int) -> None:
        """Compare the share of constant rows with the limit.

        Args:
            rows: embeddings, constant ones included.
            constant_rows: those of one number.

        Raises:
            errors.GateFailed: the share is above the limit.
        """
        share = constant_rows / rows if rows else 0.0
        if self.constant is not None and share > self.constant:
            raise errors.GateFailed(
                f"{constant_rows} of {rows} embeddings are constant ({100 * share:.1f} %); "
                f"--max-constant is {self.constant:g}.",
                _HINT,
            )

    def comparable(self, split: str | None, images: str) -> None:
        """Refuse a baseline of another split or of other images; needs no measurement.

        Args:
            split: the split that is asked for.
            images: id of the images; empty where it is not known.

        Raises:
            errors.UsageError: split or images differ.
        """
        old = self.baseline
        if old is None:
            return
        if old.split is not None:
            _same(old, "split", old.split or "all", split or "all")
        if old.images and images:
            _same(old, "images", old.images, images)

    def same_rows(self, rows: int) -> None:
        """Refuse a baseline of another number of embeddings, constant ones included.

        Raises:
            errors.UsageError: the numbers differ.
        """
        if self.baseline is not None:
            _same(self.baseline, "rows", self.baseline.rows, rows)


def _same(old: Baseline, name: str, one: object, two: object) -> None:
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
    constant: float | None = None,
) -> Limits:
    """The limits that a command line names.

    Args:
        minimum: of ODCorr.
        maximum: of ODCorr.
        baseline: `scores` of an earlier `odcorr`, its JSON document, or a record it printed.
        tolerance: how far above the baseline ODCorr may lie; goes with `baseline`.
        constant: of the share of constant rows; None means `MAX_CONSTANT` where any other limit is
            given, and else no limit.

    Raises:
        errors.UsageError: limits that nothing can meet, or a baseline without tolerance, or that
            without a baseline.
        errors.InputError: the baseline cannot be read, or is no ODCorr.
    """
    if (baseline is None) != (tolerance is None):
        raise errors.UsageError(
            "--baseline and --tolerance go together.", "--baseline old.json --tolerance 0.02"
        )
    if constant is None and any(one is not None for one in (minimum, maximum, baseline)):
        constant = MAX_CONSTANT
    if baseline is None or tolerance is None:
        return Limits(minimum=minimum, maximum=maximum, constant=constant)
    if not 0 <= tolerance < math.inf:
        raise errors.UsageError(f"--tolerance {tolerance:g} is not 0 or more.", "--tolerance 0.02")
    old = _read(baseline, tolerance)
    return Limits(minimum=minimum, maximum=maximum, baseline=old, constant=constant)


def _read(path: Path, tolerance: float) -> Baseline:
    table = scores.place(path).table
    if path.is_dir() or table.suffix == path.suffix:
        header = artifacts.read_header(table, "scores")
        metrics, settings = header.metrics, header.settings
    else:
        document = _document(path)
        metrics, settings = document.get("metrics", {}), document.get("settings", {})
    try:
        value = float(metrics["odcorr"])
        rows = int(metrics["n"]) + int(metrics.get("constant_rows", 0))
        split, images = settings.get("split"), settings.get("scored", {}).get("images", "")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.InputError(f"{path} holds no result of odcorr.", _MAKE) from error
    if not 0 <= value <= 1:
        raise errors.InputError(f"{path} holds no ODCorr: {value:g}.", _MAKE)
    return Baseline(path, value, rows, split, images, tolerance)


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
