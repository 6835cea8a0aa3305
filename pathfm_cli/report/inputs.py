"""What a report is about: run folders, scores and embeddings, recognised and read tolerantly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.pretrain import folder
from pathfm_cli.tasks import scores

TAKES = "a run folder, scores (probe, segment, odcorr) or embeddings"


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A training run, finished or not."""

    name: str
    path: Path
    header: artifacts.Header
    finished: bool
    lines: Sequence[Mapping[str, Any]]
    """Logged steps, in order."""
    looks: Sequence[Mapping[str, Any]]
    """Looks at the teacher."""
    damaged: int
    """Lines that could not be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """A `scores` artifact and the document beside it."""

    name: str
    path: Path
    header: artifacts.Header
    frame: pl.DataFrame
    document: Mapping[str, Any]
    """Empty where it is missing or damaged."""

    @property
    def task(self) -> str:
        """probe, segment or odcorr."""
        return str(self.header.settings.get("task", "scores"))

    @property
    def scored(self) -> Mapping[str, Any]:
        """What was scored, of a probe: data set, model and how it was applied; empty if unknown."""
        found = self.header.settings.get("scored")
        return found if isinstance(found, Mapping) else {}

    @property
    def protocol(self) -> str:
        """Name of the protocol; empty if the task has none."""
        found = self.header.settings.get("protocol", "")
        found = found.get("name") if isinstance(found, Mapping) else found
        return str(found or "")

    @property
    def method(self) -> str:
        """Of a probe, what was trained; else the task."""
        return (
            str(self.header.settings.get("method", "linear")) if self.task == "probe" else self.task
        )

    @property
    def terms(self) -> str:
        """Under what a score compares: protocol or method, and what is not as in a plain probe."""
        settings = self.header.settings
        shots, folds = settings.get("shots"), settings.get("folds")
        made = f"{folds} folds" if isinstance(folds, int) else f"folds of {folds}"
        said = [
            self.protocol or self.method,
            f"{shots} images a class" if shots else "",
            made if folds is not None else "",
        ]
        for name, usual in (("train", "train"), ("select", "val"), ("test", "test")):
            if (found := settings.get(name, usual)) != usual:
                said.append(f"{name} {found}")
        return ", ".join(filter(None, said))


@dataclasses.dataclass(frozen=True, slots=True)
class Embeddings:
    """An `embeddings` artifact."""

    name: str
    path: Path
    header: artifacts.Header


Input = Run | Scores | Embeddings


def open_inputs(paths: Sequence[str]) -> list[Input]:
    """Open everything, each path once, and name it by what tells it from the others.

    Raises:
        errors.InputError: a path is missing, damaged, or nothing a report is about.
    """
    unique = list(dict.fromkeys(str(_home(Path(path))) for path in paths))
    return [_open(Path(path), name) for path, name in zip(unique, _names(unique), strict=True)]


def _home(path: Path) -> Path:
    """The folder that a file of a run or of scores stands for, or the file itself."""
    if path.name in (folder.RESULT, folder.METRICS, folder.WATCH, folder.IDENTITY):
        return path.parent
    return path.parent if path.name == scores.place("x").table.name else path


def _open(path: Path, name: str) -> Input:
    if not path.exists():
        raise errors.InputError(f"{path} does not exist.", f"name {TAKES}")
    if path.is_dir():
        if (path / folder.IDENTITY).exists() or (path / folder.RESULT).exists():
            return _run(path, name)
        if not (table := scores.place(path).table).exists():
            raise errors.InputError(f"{path} is no artifact of pathfm.", f"name {TAKES}")
        path = table
    header = artifacts.read_header(path)
    if header.kind == "checkpoint":
        return _run(path.parent, name)
    if header.kind == "scores":
        frame = artifacts.read_table(path, "scores").frame
        return Scores(name, path, header, frame, _document(path))
    if header.kind == "embeddings":
        return Embeddings(name, path, header)
    raise errors.InputError(f"{path} is {header.kind}; a report takes {TAKES}.", f"name {TAKES}")


def _run(path: Path, name: str) -> Run:
    finished = (path / folder.RESULT).exists()
    header = artifacts.read_header(path, "checkpoint") if finished else _identity(path)
    lines, damaged = _lines(path / folder.METRICS)
    looks, lost = _lines(path / folder.WATCH)
    return Run(
        name=name,
        path=path,
        header=header,
        finished=finished,
        lines=lines,
        looks=looks,
        damaged=damaged + lost,
    )


def _identity(path: Path) -> artifacts.Header:
    file = path / folder.IDENTITY
    try:
        document = json.loads(disk.read(file))
        return artifacts.Header(
            kind="checkpoint",
            parents=tuple(map(str, document["parents"])),
            settings=dict(document["settings"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"{file} is damaged: what is trained in {path} cannot be told.", "run pretrain again"
        ) from error


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Objects with a step, and how many lines are none; a half-written last line is no line."""
    try:
        texts = disk.read(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise errors.InputError(f"{path} cannot be read: {error.strerror}.") from error
    found = []
    for text in texts:
        try:
            line = json.loads(text)
            found.append({**line, "step": int(line["step"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
    return found, len(texts) - len(found)


def _document(table: Path) -> dict[str, Any]:
    place = scores.place(table.parent if table.name == scores.place("x").table.name else table)
    try:
        document = json.loads(disk.read(place.document))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _names(paths: Sequence[str]) -> list[str]:
    """As few last parts of each path as tell it from the others."""
    parts = [Path(path).absolute().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)
