"""Patches that could not be read and were replaced: counted, listed, and too many end the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from pathfm_cli import errors

MAX_SHARE = 0.05
"""Share of the patches that may be replaced unless told otherwise."""
LEAST_PATCHES = 1000
"""The share is of this many patches at least, so that one bad batch at the start ends nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A patch that could not be read and was replaced."""

    index: int
    slide: str
    error: str


class Ledger:
    """What was replaced so far."""

    def __init__(self, max_share: float = MAX_SHARE, listing: Path | None = None) -> None:
        """Start at nothing.

        Args:
            max_share: of the patches; more end the run.
            listing: JSON lines, appended to; made when the first patch is replaced.
        """
        self.patches = 0
        self.failed = 0
        self._max_share = max_share
        self._listing = listing

    def add(self, patches: int, failures: Iterable[Failure]) -> None:
        """Count a batch.

        Args:
            patches: how many the batch holds.
            failures: those that were replaced, each replacement that failed too included.

        Raises:
            errors.TooManyFailures: more than the allowed share was replaced.
        """
        told = list(failures)
        self.patches += patches
        self.failed += len(told)
        if told and self._listing is not None:
            self._listing.parent.mkdir(parents=True, exist_ok=True)
            with self._listing.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(dataclasses.asdict(one)) + "\n" for one in told)
        if told and self.failed > self._max_share * max(self.patches, LEAST_PATCHES):
            raise errors.TooManyFailures(
                f"{self.failed} of {self.patches} patches could not be read, more than "
                f"{self._max_share:.1%} (train.max_failed); the last: {told[-1].error}.",
                "repair the slides, or run `pathfm index` again to leave them out",
            )
