"""Which of how many processes this is, and on which device; set by torchrun's environment."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
from torch import distributed

from pathfm_cli.model import device as devices


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

    def wait(self) -> None:
        """Return when all ranks are here."""
        self.any(False)


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
        distributed.init_process_group(backend)
    try:
        yield Place(rank, world_size, picked)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
