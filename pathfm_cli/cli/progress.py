"""Progress on stderr: a live line on a terminal, one plain line a minute elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from pathfm_cli.cli import output


class Report(Protocol):
    """Called by library functions with what is done, how much there is, and how it goes."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show it."""


PLAIN_EVERY_S = 60.0


@contextlib.contextmanager
def track(label: str, *, quiet: bool = False, detail: bool = False) -> Iterator[Report]:
    """Yield a function that shows `done` of `total` and an estimate of the time left.

    Args:
        label: what is done.
        quiet: show nothing.
        detail: leave room for a text about how it goes.
    """
    if quiet or sys.stderr is None:
        yield lambda done, total, text="": None
    elif sys.stderr.isatty():
        with _live(label, detail) as report:
            yield report
    else:
        yield _plain(label)


@contextlib.contextmanager
def _live(label: str, detail: bool) -> Iterator[Report]:
    from rich import console, progress

    texts = [progress.TextColumn("{task.fields[text]}", markup=False)] if detail else []
    with progress.Progress(
        progress.TextColumn(label),
        progress.BarColumn(bar_width=16 if detail else 40),
        progress.MofNCompleteColumn(),
        *texts,
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None, text="")
        yield lambda done, total, text="": bar.update(task, completed=done, total=total, text=text)


def _plain(label: str) -> Report:
    start = last = time.monotonic()

    def report(done: int, total: int, text: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S and done:
            last = now
            left = (now - start) / done * (total - done)
            said = f"{text}, " if text else ""
            output.note(f"{label}: {done} of {total}, {said}about {left / 60:.0f} min left")

    return report
