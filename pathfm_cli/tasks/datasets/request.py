"""What a user asks of `tasks tp53`, and the table of labels it writes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from pathfm_cli import disk, errors
from pathfm_cli.tasks.datasets import tp53


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """What was written: a record, sentences, lines for a person, and the next command."""

    record: dict[str, Any]
    notes: list[str]
    lines: list[str]
    follow: str


@dataclasses.dataclass(frozen=True, slots=True)
class Labels:
    """Where the labels come from and go to.

    Raises:
        errors.UsageError: not exactly one way to the labels, or no output.
    """

    mutations: Path | None
    copy_number: Path | None
    ready: tuple[Path, ...]
    slides: Path | None
    out: Path | None

    def __post_init__(self) -> None:
        both = self.mutations is not None and self.copy_number is not None
        either = self.mutations is not None or self.copy_number is not None
        if self.out is None:
            raise errors.UsageError("tp53 needs a file to write.", "-o labels.csv")
        if self.out.suffix.lower() != ".csv":
            raise errors.UsageError(f"{self.out} is no .csv.", "-o labels.csv")
        if either == bool(self.ready) or either != both:
            raise errors.UsageError(
                "tp53 needs --mutations with --copy-number, or --labels.",
                "pathfm tasks tp53 --mutations MAF --copy-number TABLE -o labels.csv",
            )

    def plan(self) -> dict[str, Any]:
        """What `make` would read and write."""
        given = (self.mutations, self.copy_number, *self.ready, self.slides)
        return {
            "reads": [str(path) for path in given if path is not None],
            "writes": str(self.out),
        }

    def make(self, *, overwrite: bool = False) -> Made:
        """Make the table and write it.

        Raises:
            errors.InputError: as `tp53.from_assays`, `tp53.from_ready`, `tp53.labels`.
            errors.OutputClash: the output is there and differs.
        """
        out = self.out or Path()
        if out.is_dir():
            raise errors.OutputClash(f"{out} is a folder.", f"-o {out / 'labels.csv'}")
        notes: list[str] = []
        slides = None
        if self.mutations and self.copy_number:
            cases, notes = tp53.from_assays(self.mutations, self.copy_number)
        else:
            cases, slides = tp53.from_ready(self.ready)
        if self.slides:
            slides = tp53.slides_of(self.slides)
        rows, more = tp53.labels(cases, slides)
        text = rows.write_csv()
        if out.exists() and out.read_bytes() == text.encode():
            notes.append(f"{out} is up to date")
        elif out.exists() and not overwrite:
            raise errors.OutputClash(
                f"{out} exists and differs.", "another -o, or --overwrite to replace it"
            )
        else:
            with disk.atomic(out) as temporary:
                temporary.write_text(text)
        return _made(out, rows.height, cases["label"].to_list(), notes + more, slides is not None)


def _made(out: Path, rows: int, labels: list[str], notes: list[str], sliced: bool) -> Made:
    aberrated = labels.count(tp53.ABERRATED)
    record = {
        "schema": "pathfm.table/1",
        "path": os.path.abspath(out),
        "rows": rows,
        "patients": len(labels),
        tp53.ABERRATED: aberrated,
    }
    lines = [
        f"{rows} {'slides' if sliced else 'patients'}: {len(labels)} patients, "
        f"{aberrated} with aberrated TP53: {out}"
    ]
    return Made(record, notes, lines, f"pathfm index slides/ --metadata {out} -o s.parquet")
