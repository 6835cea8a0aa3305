"""Progress on stderr: a live line on a terminal, one plain line a minute elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from pathfm_cli.cli import output

Report = Callable[[int, int], None]
"""Called by library functions with (done, total)."""

PLAIN_EVERY_S = 60.0


@contextlib.contextmanager
def track(label: str, *, quiet: bool = False) -> Iterator[Report]:
    """Yield a function that shows `done` of `total` and an estimate of the time left."""
    if quiet or sys.stderr is None:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _live(label) as report:
            yield report
    else:
        yield _plain(label)


@contextlib.contextmanager
def _live(label: str) -> Iterator[Report]:
    from rich import console, progress

    with progress.Progress(
        progress.TextColumn(label),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(label: str) -> Report:
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S and done:
            last = now
            left = (now - start) / done * (total - done)
            output.note(f"{label}: {done} of {total}, about {left / 60:.0f} min left")

    return report
