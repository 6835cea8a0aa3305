"""Which of how many processes this is, and on which device; set by torchrun's environment."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
from collections.abc import Iterator

import torch
from torch import distributed

from pathfm_cli import config, errors
from pathfm_cli.model import device as devices

PATIENCE = "PATHFM_PEER_TIMEOUT_S"
"""Environment variable: how long ranks, and machines at the start, wait for each other, seconds."""
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|peer", re.IGNORECASE
)
"""What torch's process groups say when another process is gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """One rank of a run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank; all ranks must ask at the same step."""
        if self.world_size == 1:
            return flag
        shared = torch.tensor(int(flag))
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return bool(shared.item())

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a CPU tensor over all ranks; all ranks must ask at the same step."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, number: int) -> bool:
        """Whether all ranks give the same number below 2^62; all must ask at the same step."""
        if self.world_size == 1:
            return True
        both = torch.tensor([number, -number])
        distributed.all_reduce(both, op=distributed.ReduceOp.MAX)
        return bool(both.sum() == 0)

    def wait(self) -> None:
        """Return when all ranks are here."""
        self.any(False)


def patience() -> datetime.timedelta:
    """How long is waited for others: `PATIENCE`, in seconds, or half an hour as torch does.

    Raises:
        errors.UsageError: it is no number above 0.
    """
    return datetime.timedelta(seconds=config.seconds(PATIENCE, 1800))


@contextlib.contextmanager
def join(device: str) -> Iterator[Place]:
    """Join the other ranks that torchrun started, if there are any.

    CPU tensors travel by gloo, CUDA tensors by nccl.

    Args:
        device: as `device.pick`; auto and cuda mean the CUDA device of this local rank.
    """
    rank, world_size = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    picked = devices.pick(device)
    if picked.type == "cuda" and picked.index is None:
        picked = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(picked)
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=patience())
    try:
        yield Place(rank, world_size, picked)
    except RuntimeError as error:
        if world_size > 1 and _LOST.search(str(error)):
            raise errors.PathfmError(
                f"Rank {rank} has lost the other processes of the run: {errors.first_line(error)}.",
                "run the same command on all machines again: it goes on from the last checkpoint",
            ) from error
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
