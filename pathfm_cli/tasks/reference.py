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
from pathfm_cli.model import zoo
from pathfm_cli.tasks import protocols

SIDE_PX = 224
"""Input of the evaluation protocols."""


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


def check(
    name: str,
    settings: Mapping[str, Any],
    score: float,
    config: protocols.Config,
    reported: str = "test",
) -> Check:
    """Compare a score to the one published for the same encoder, task and split.

    Args:
        name: of the table.
        settings: of the embeddings: `task`, `model`, `partial`, and how the encoder was applied.
        score: balanced accuracy.
        config: how the score came about.
        reported: name of the split that is reported. Where the table has a score of it under
            `TASK:SPLIT`, that one is meant.

    Raises:
        errors.UsageError: no such table, it has no score for this encoder and task, or the score
            is made otherwise than those of the table.
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
    if f"{task}:{reported}" in found.scores:
        task = f"{task}:{reported}"
    if differs := _differences(name, task, settings, config):
        raise errors.UsageError(
            f"--reference {name} does not compare with this: {'; '.join(differs)}.",
            "the complete data set, --method linear --protocol paper, its own splits",
        )
    return Check(found, task, score, table.tolerance)


def _input_differences(settings: Mapping[str, Any]) -> list[str]:
    """In what an encoder was applied otherwise than its authors and the protocols do."""
    entry = zoo.find(str(settings["model"]))
    own: dict[str, Any] = {"embedding": "cls", "image_size_px": SIDE_PX}
    if entry:
        own = {"embedding": entry.embedding, "image_size_px": entry.image_size_px}
        own |= {"mean": list(entry.mean), "std": list(entry.std)}
    return [
        f"{name} {settings[name]}, not {usual}"
        for name, usual in own.items()
        if name in settings and settings[name] != usual
    ]


def _differences(
    name: str, task: str, settings: Mapping[str, Any], config: protocols.Config
) -> list[str]:
    """In what a probe is none of those that were published."""
    found = []
    if settings.get("partial"):
        found.append(f"{task} is not complete")
    found += _input_differences(settings)
    if config.method != "linear":
        found.append(f"--method {config.method}, not linear")
    if config.protocol != name:
        found.append(f"--protocol {config.protocol}, not {name}")
    if config.shots is not None:
        found.append(f"--shots {config.shots}, not all images")
    if config.folds is not None:
        found.append("--folds, not the published splits")
    elif config.train != "train" or (config.test != "test" and ":" not in task):
        found.append(f"--train {config.train} --test {config.test}, not the published splits")
    if config.select != "val":
        found.append(f"--select {config.select}, not val")
    return found
