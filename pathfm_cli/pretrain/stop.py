"""Signals as a wish to stop: the loop asks between steps, saves and leaves."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""USR1 is what SLURM sends ahead of the time limit (`--signal=USR1@300`)."""


@contextlib.contextmanager
def wished() -> Iterator[Callable[[], bool]]:
    """Catch `SIGNALS`; yield a function that says whether one came, or the parent is gone.

    A launcher that was killed cannot stop its workers, so they look for themselves.
    """
    parent = os.getppid()
    caught: list[int] = []

    def remember(number: int, frame: Any) -> None:
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield lambda: bool(caught) or os.getppid() != parent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
