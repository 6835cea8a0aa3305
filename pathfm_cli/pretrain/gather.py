"""Rows of all ranks side by side, with gradients back to the rank that each row came from.

Legend: B rows of a rank, R ranks, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def rows(x_BD: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Gather the rows of all ranks; every rank must ask, with as many rows.

    A loss that is the mean over a rank's own rows, on gathered ones, has the gradient of one
    process with all rows once the ranks' gradients are averaged, as DistributedDataParallel does.

    Returns:
        (R B, D), rank by rank, and where this rank's own rows begin. Alone: the rows and 0.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return x_BD, 0
    everyone: torch.Tensor = _Gather.apply(x_BD)  # type: ignore[no-untyped-call]
    return everyone, distributed.get_rank() * len(x_BD)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: torch.Tensor) -> torch.Tensor:
        ctx.batch = len(x_BD)
        parts = [torch.empty_like(x_BD) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        first = distributed.get_rank() * ctx.batch
        return total[first : first + ctx.batch]
