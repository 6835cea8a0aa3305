"""What a user asks of `probe` beside the training: folds, factors, and what to hold it against."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pathfm_cli import errors
from pathfm_cli.tasks import reference

if TYPE_CHECKING:
    from pathfm_cli.tasks import features, predictions, probe, protocols

MAX_FOLDS = 1000


def folds(text: str | None) -> int | str | None:
    """A number of folds to make, or the column that names them.

    Raises:
        errors.UsageError: fewer than 2 or more than `MAX_FOLDS`, or no whole number.
    """
    try:
        count = int(text or "")
    except ValueError:
        if text and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text):
            raise errors.UsageError(
                f"--folds {text} is no whole number.", "--folds 5, or a column's name"
            ) from None
        return text
    if not 2 <= count <= MAX_FOLDS:
        raise errors.UsageError(f"--folds {count} is not in 2..{MAX_FOLDS}.", "--folds 5")
    return count


def scales(text: str | None) -> tuple[float, ...]:
    """Factors separated by commas.

    Raises:
        errors.UsageError: one is no number.
    """
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise errors.UsageError(
            f"--lr-scales {text} are no numbers with commas.", "--lr-scales 0.1,10"
        ) from error


class Checks:
    """What a finished probe is held against; it changes nothing in the artifact.

    Args:
        compare: scores of another probe on the same images.
        published: name of a table of `reference`.
    """

    def __init__(self, compare: Path | None, published: str | None) -> None:
        self.compare, self.published = compare, published
        self._other: predictions.Predictions | None = None
        self._check: reference.Check | None = None
        self._reported = "test"
        if published is not None:
            reference.find(published)

    def refuse(self, source: features.Features, config: protocols.Config) -> None:
        """Fail before anything is trained.

        Raises:
            errors.InputError: as `predictions.read`, `compare.matched`, `labelled.prepare`.
            errors.UsageError: as `reference.check`, `labelled.prepare`.
        """
        if self.published is not None:
            known = source.splits() if config.folds is None else []
            self._reported = config.test if config.test in known or not known else config.val
            reference.check(self.published, source.settings, 0.0, config, self._reported)
        if self.compare is not None:
            from pathfm_cli.tasks import compare, predictions, probe

            self._other = predictions.read(self.compare)
            compare.matched(probe.expected(source, config), self._other)

    def judge(
        self, result: probe.Result, source: features.Features, config: protocols.Config
    ) -> probe.Result:
        """Add what was found to the record, the notes and the lines.

        Raises:
            errors.InputError: as `compare.compare`.
        """
        record, notes, lines = dict(result.record), tuple(result.notes), list(result.lines)
        found = dict(record["metrics"])
        if self._other is not None and result.predicted is not None:
            from pathfm_cli.tasks import compare

            measured = compare.compare(result.predicted, self._other)
            found |= measured.metrics()
            notes += measured.notes
            lines += measured.lines(str(self.compare))
        if self.published is not None:
            score = found["balanced_accuracy"]
            self._check = reference.check(
                self.published, source.settings, score, config, self._reported
            )
            found |= self._check.metrics()
            lines += [self._check.line(), f"  {reference.find(self.published).citation}"]
        record["metrics"] = found
        return dataclasses.replace(result, record=record, notes=notes, lines=lines)

    def gate(self) -> None:
        """Fail a script when the score is not the published one.

        Raises:
            errors.GateFailed: it is further away than the table allows.
        """
        if self._check is not None and not self._check.passed:
            raise errors.GateFailed(
                f"{self._check.line()}.", "the same weights, protocol and complete data set?"
            )
