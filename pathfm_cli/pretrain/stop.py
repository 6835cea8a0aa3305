"""Signals as a wish to stop: the loop asks between steps, saves and leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""USR1 is what SLURM sends ahead of the time limit (`--signal=USR1@300`)."""
LAUNCHER = "PATHFM_LAUNCHER"
"""Environment variable: process id of the launcher of this training process."""
SHUTDOWN_S = 300
"""How long a training process may take to stop before it is killed."""


@contextlib.contextmanager
def wished() -> Iterator[Callable[[], bool]]:
    """Catch `SIGNALS`; yield a function that says whether one came."""
    caught: list[int] = []

    def remember(number: int, frame: Any) -> None:
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def with_launcher() -> None:
    """Stop this process when its launcher is gone, which, once killed, cannot stop it itself."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        threading.Thread(target=_watch, args=(int(launcher),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SHUTDOWN_S)
    os._exit(1)
