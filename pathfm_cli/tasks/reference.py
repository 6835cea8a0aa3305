"""Published scores, and whether a new one agrees with them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pathfm_cli import errors


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One encoder of a published table.

    Attributes:
        name: as printed.
        data: what it was trained on, as printed.
        models: what pathfm calls it.
        scores: by task.
    """

    name: str
    data: str
    models: tuple[str, ...]
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A published table: where it stands, and by how much (relative) another run may differ."""

    citation: str
    tolerance: float
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """A score beside the published one."""

    row: Row
    task: str
    score: float
    tolerance: float

    @property
    def published(self) -> float:
        """The printed score."""
        return self.row.scores[self.task]

    @property
    def passed(self) -> bool:
        """Whether the score is within the tolerance, relative to the published one."""
        return abs(self.score - self.published) <= self.tolerance * self.published + 1e-12

    def metrics(self) -> dict[str, float]:
        """Flat numbers for the record."""
        return {
            "reference": self.published,
            "reference_difference": self.score - self.published,
            "reference_passed": float(self.passed),
        }

    def line(self) -> str:
        """For a person."""
        difference = self.score - self.published
        return (
            f"{'PASS' if self.passed else 'FAIL'}: {self.row.name} on {self.task}: "
            f"{self.score:.4f}, published {self.published:.3f}, difference {difference:+.4f} "
            f"({difference / self.published:+.1%}; {self.tolerance:.0%} allowed)"
        )


@functools.cache
def tables() -> Mapping[str, Table]:
    """The published tables by name."""
    text = (resources.files("pathfm_cli.tasks") / "reference.toml").read_text()
    return {
        name: Table(
            citation=table["citation"],
            tolerance=table["tolerance"],
            rows=tuple(
                Row(row["name"], row["data"], tuple(row["models"]), row["scores"])
                for row in table["rows"]
            ),
        )
        for name, table in tomllib.loads(text).items()
    }


def find(name: str) -> Table:
    """The table called `name`.

    Raises:
        errors.UsageError: there is none.
    """
    known = tables()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise errors.UsageError(f"There is no reference {name!r}.", hint)
    return known[name]


def row(table: Table, model: str) -> Row | None:
    """The row of an encoder; None if it has none."""
    return next((one for one in table.rows if model in one.models), None)


def check(name: str, settings: Mapping[str, Any], score: float) -> Check:
    """Compare a score to the one published for the same encoder and task.

    Args:
        name: of the table.
        settings: of the embeddings: `task` and `model`.
        score: balanced accuracy.

    Raises:
        errors.UsageError: no such table, or it has no score for this encoder and task.
    """
    table = find(name)
    if "task" not in settings or "model" not in settings:
        raise errors.UsageError(
            f"--reference {name} needs to know the data set and the encoder.",
            "pathfm probe --task bach --model kaiko-s16 ..., or embeddings made so",
        )
    task, model = str(settings["task"]), str(settings["model"])
    found = row(table, model)
    if found is None or task not in found.scores:
        known = sorted({name for one in table.rows for name in one.models if task in one.scores})
        raise errors.UsageError(
            f"--reference {name} has no score of {model} on {task}.",
            f"it has {task} of {', '.join(known)}" if known else "another data set",
        )
    return Check(found, task, score, table.tolerance)
