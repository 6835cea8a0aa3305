"""Several processes on one piece of work, as torchrun starts them: who this one is, and waiting."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator

import torch
from torch import distributed

LONGEST = datetime.timedelta(days=7)
"""How long a rank waits for the others; torchrun ends all when one fails."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its like."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes the result and speaks."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Whether piece `number` of the work is this one's."""
        return number % self.size == self.rank

    def wait(self) -> None:
        """Return when all are here."""
        if self.size > 1:
            distributed.barrier()


def here() -> Ranks:
    """What torchrun's environment says; alone without it."""
    return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def device(name: str) -> str:
    """The device of this process: among several, `auto` and `cuda` mean the one of its own."""
    if here().size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return name


@contextlib.contextmanager
def join() -> Iterator[Ranks]:
    """Meet the others, over gloo: only waiting passes between them, files carry the work."""
    found = here()
    joined = found.size > 1 and not distributed.is_initialized()
    if joined:
        distributed.init_process_group("gloo", timeout=LONGEST)
    try:
        yield found
    finally:
        if joined:
            distributed.destroy_process_group()
