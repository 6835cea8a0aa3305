"""Another try after failures that pass: exponential backoff with full jitter.

The n-th wait is uniform in [0, min(LONGEST_S, FIRST_S * 2^n)], so that many readers that failed
together do not come back together (M. Brooker, "Exponential backoff and jitter", 2015).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

ATTEMPTS = 8
"""Tries in all; the waits between them sum to 6 s on average, 12.7 s at most."""
FIRST_S = 0.1
LONGEST_S = 5.0

T = TypeVar("T")
# Its own generator, so that the process's random state stays as it is.
_random = random.Random()


class Transient(Exception):
    """A failure that may pass: an overloaded server, a lost connection, a time-out."""


def call(work: Callable[[], T], failed: Callable[[], None] = lambda: None) -> T:
    """Return what `work` returns, trying again after each `Transient`.

    Args:
        work: may be called up to `ATTEMPTS` times.
        failed: told before each further try.

    Raises:
        Transient: the last try failed too.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return work()
        except Transient:
            failed()
            time.sleep(_random.uniform(0, min(LONGEST_S, FIRST_S * 2**attempt)))
    return work()
