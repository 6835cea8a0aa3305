"""Imported by the server that forks readers alone: signals to the group must not end it.

When it ends its children count as dead, though they read on. They get the usual handlers back.
"""

from __future__ import annotations

import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def _set(handler: signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


_set(signal.SIG_IGN)
os.register_at_fork(after_in_child=lambda: _set(signal.SIG_DFL))
