"""What a public data set is: its published facts, and how its folder becomes rows and pixels."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import errors
from pathfm_cli.tasks import images, source

Rows = pl.DataFrame


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """One file to download.

    Attributes:
        url: where it lies.
        md5: 32 hex digits of the file as downloaded; empty where none is published.
        unpacked_md5: of what a .gz unpacks to; empty where none is published.
        makes: file or folder under the data root that exists once it is unpacked.
        keep: of a zip, only entries whose name starts so; empty keeps all.
        max_unpacked_bytes: more than this is refused.
        images: .tif files in what it makes, where that is a folder.
    """

    url: str
    makes: str
    max_unpacked_bytes: int
    images: int = 0
    md5: str = ""
    unpacked_md5: str = ""
    keep: str = ""

    @property
    def file(self) -> str:
        """Name of the downloaded file."""
        return self.url.rpartition("/")[2].partition("?")[0]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is published about a data set.

    Attributes:
        name: as typed after `--task`.
        title: one line.
        classes: names in the order of their numbers.
        counts: images by split; each a total, or one number a class.
        mpp: um/px of the images.
        licence: short name.
        licence_url: its text.
        origin: where it is published.
        layout: paths under the data root, for messages and documents.
        instructions: how to get it by hand.
        resources: what `--download` fetches; empty where a form or a login stands before it.
        notes: what a user should know about the split.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    counts: Mapping[str, int | tuple[int, ...]]
    mpp: float
    licence: str
    licence_url: str
    origin: str
    layout: tuple[str, ...]
    instructions: str
    resources: tuple[Resource, ...] = ()
    notes: str = ""

    def total(self, split: str) -> int:
        """Images of a split."""
        count = self.counts[split]
        return count if isinstance(count, int) else sum(count)

    def hint(self, root: Path, mirror: str | None = None) -> str:
        """What to do where the data set is absent or damaged.

        Args:
            root: its folder.
            mirror: where else its files lie.
        """
        if not self.resources:
            return self.instructions
        more = f" --mirror {shlex.quote(mirror)}" if mirror else ""
        root_text = shlex.quote(str(root))
        return f"pathfm tasks {self.name} --download --accept-licence --data {root_text}{more}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What a data set's folder holds.

    Attributes:
        rows: `id`, `label`, `split`, and `group` where patients are known.
        read: pixels of row i, as `source.Source.read`.
        version: text that changes with the data.
    """

    rows: Rows
    read: Callable[[int], source.Image]
    version: str


class Dataset(abc.ABC):
    """One public data set; a subclass knows its layout."""

    facts: Facts

    @abc.abstractmethod
    def scan(self, root: Path) -> Scan:
        """List the images under `root` by split, in an order that never changes.

        Raises:
            errors.InputError: a file or folder of the layout is missing or damaged.
        """

    def open(self, root: Path, *, partial: bool = False) -> source.Source:
        """Open the data set for `embed`.

        Args:
            root: its folder, or the folder that holds it under its name.
            partial: go on where images are missing; a score on that compares with nothing.

        Raises:
            errors.InputError: absent, damaged, or not as many images as published.
        """
        place = self.place(root)
        scan = self.scan(place)
        problem = difference(self.facts, scan.rows)
        if problem and not partial:
            raise errors.InputError(
                f"{self.facts.name} in {place} is not complete: {problem}.",
                self.facts.hint(place),
            )
        notes = [f"{self.facts.name}: {self.facts.notes}"] if self.facts.notes else []
        if problem:
            notes.append(f"{self.facts.name} is not complete: {problem}; scores do not compare")
        return source.Source(
            rows=scan.rows,
            read=scan.read,
            parent=f"task:{self.facts.name}:{_digest(scan)}",
            settings=self.settings(complete=not problem),
            what="images",
            notes=tuple(notes),
        )

    def place(self, root: Path) -> Path:
        """The folder with the layout: `root`, or `root/NAME` where that is it."""
        first = self.facts.layout[0].partition("/")[0]
        below = root / self.facts.name
        return below if below.is_dir() and not (root / first).exists() else root

    def settings(self, *, complete: bool) -> dict[str, Any]:
        """What a result records of the data set; classes are in the order of their numbers."""
        settings: dict[str, Any] = {"task": self.facts.name, "classes": list(self.facts.classes)}
        return settings if complete else {**settings, "partial": True}


def missing(facts: Facts, root: Path, path: Path) -> errors.InputError:
    """The error for a part of the layout that is not there."""
    what = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return errors.InputError(
        f"{facts.name} ({facts.origin}, {facts.licence}) is not in {root}: {what} is missing.",
        facts.hint(root),
    )


def difference(facts: Facts, rows: Rows) -> str:
    """The first way in which rows differ from the published counts; empty if they do not."""
    strange = set(rows["label"].drop_nulls().unique().to_list()) - set(facts.classes)
    if strange:
        return f"{min(strange)} is none of its classes"
    for split, count in facts.counts.items():
        chosen = rows.filter(pl.col("split") == split)
        if chosen.height != facts.total(split):
            return f"{split} has {chosen.height:,} images, not {facts.total(split):,}"
        if not isinstance(count, int):
            for name, expected in zip(facts.classes, count, strict=True):
                found = chosen.filter(pl.col("label") == name).height
                if found != expected:
                    return f"{split} has {found:,} images of {name}, not {expected:,}"
    return ""


def from_files(root: Path, rows: Rows, files: Sequence[str]) -> Scan:
    """A scan whose images are files.

    Args:
        root: what `files` are relative to.
        rows: as in `Scan`.
        files: one a row.
    """
    paths = [os.path.join(root, name) for name in files]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{_version(path)}\n".encode())
    return Scan(rows=rows, read=lambda row: images.decode(paths[row]), version=digest.hexdigest())


def listing(folder: Path, suffix: str) -> list[str]:
    """Names of the files in a folder that end so, sorted; none where it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(
            e.name for e in entries if e.name.lower().endswith(suffix) and e.name[0] != "."
        )


def _version(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _digest(scan: Scan) -> str:
    digest = hashlib.sha256(scan.version.encode())
    for row in scan.rows.iter_rows():
        digest.update(f"{row!r}\n".encode())
    return digest.hexdigest()[:12]
