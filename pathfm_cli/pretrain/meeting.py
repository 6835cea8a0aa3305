"""Where the launchers of several machines wait for each other: stoppable, and failing in words."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pathfm_cli import errors
from pathfm_cli.pretrain import stop

GRACE_S = 0.5
"""Within so long after a signal Python's own handler has run, unless torch waits in C++."""
ATTEMPT_S = 5.0
BETWEEN_S = 0.5
MARGIN_S = 10.0
"""torch's own time-outs come first: they know more."""
_SENTENCE = "Stopped by a signal before training began."
_HINT = "run the same command again"


@contextlib.contextmanager
def stoppable(scratch: Path, late_s: float, late: errors.PathfmError) -> Iterator[None]:
    """Have `stop.SIGNALS`, or too long a wait, end this process while torch waits for others.

    It waits in C++, up to half an hour, where no Python handler runs, and without an end where
    something else than torch answers: a thread that hears of the signal then ends the process. Once
    there are training processes, torch has set handlers of its own, and this one only looks on.

    Args:
        scratch: a folder that is removed where the process is ended.
        late_s: how long the wait may take.
        late: what is said, and the exit code, when it takes longer.

    Raises:
        errors.Interrupted: a signal came, and Python ran.
    """

    def handle(number: int, frame: Any) -> None:
        raise errors.Interrupted(_SENTENCE, _HINT)

    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    old_mouth = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in stop.SIGNALS}
    for number in stop.SIGNALS:
        # What waits goes on waiting: torch would print a stack of C++ when it is interrupted.
        signal.siginterrupt(number, False)
    ended = threading.Event()

    def waits() -> bool:
        return signal.getsignal(signal.SIGTERM) is handle and not ended.wait(GRACE_S)

    def listen() -> None:
        if not select.select([ear], [], [], late_s)[0] and waits():
            _leave(late, scratch)
        while heard := os.read(ear, 1):
            if heard[0] in stop.SIGNALS and waits():
                _leave(errors.Interrupted(_SENTENCE, _HINT), scratch)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_mouth)
        os.close(mouth)
        thread.join()
        os.close(ear)


def _leave(error: errors.PathfmError, scratch: Path) -> NoReturn:
    shutil.rmtree(scratch, ignore_errors=True)
    os.write(2, f"pathfm: {error}\nhint: {error.hint}\n".encode())
    os._exit(error.exit_code)


def latest_s(patience_s: float) -> float:
    """How long a machine may wait: to reach the first one, and then for the others."""
    return 2 * patience_s + MARGIN_S


def reach(endpoint: str, patience_s: float) -> None:
    """Return when something answers at HOST:PORT; machine 0 may start last, or get its name late.

    torch would wait too, and print a stack of C++ for each attempt.

    Raises:
        OSError: nothing did in `patience_s` seconds.
    """
    host, _, port = endpoint.rpartition(":")
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=ATTEMPT_S):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(BETWEEN_S)


def missed(count: int, endpoint: str, said: str) -> errors.PathfmError:
    """The error of machines that did not meet.

    Args:
        count: of machines.
        endpoint: HOST:PORT where they were to meet.
        said: what torch, or the system, said.
    """
    reason = said.partition("\n")[0].rstrip(". ")
    if count == 1:
        return errors.PathfmError(f"The processes did not meet: {reason}.", _HINT)
    return errors.PathfmError(
        f"The {count} machines did not meet at {endpoint}: {reason}.",
        "the same command on each, with its own --node-rank; a free port of machine 0 that the "
        "others reach",
    )
