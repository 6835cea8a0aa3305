"""Steps whose loss or gradient is not finite: found, skipped and counted without asking the device.

All ranks skip the same steps. What is skipped leaves student, moments and centre as they were; the
teacher follows the student, which stands still, as at any step.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import distributed, nn


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """A step that was skipped."""

    step: int
    loss: float
    """This rank's loss; finite where only a gradient, or another rank's loss, was not."""


class Guard(nn.Module):
    """Counts on the device. Buffers, saved with a checkpoint: three int64 scalars."""

    skipped: torch.Tensor
    """Steps skipped since the run began."""
    in_a_row: torch.Tensor
    """Skipped steps that end with the newest."""
    longest: torch.Tensor
    """Most skipped steps in a row."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("skipped", "in_a_row", "longest"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self._recent: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def judge(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """Decide whether a step is skipped; all ranks must ask at the same step.

        Args:
            step: number of the step.
            loss: this rank's loss, a scalar.
            grad_norm: norm of all gradients, the same on all ranks.

        Returns:
            A float32 scalar on the device: 1 to skip, else 0.
        """
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        skip = 1 - finite.float()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(skip, op=distributed.ReduceOp.MAX)
        one = skip.long()
        self.skipped += one
        self.in_a_row.add_(1).mul_(one)
        torch.maximum(self.longest, self.in_a_row, out=self.longest)
        self._recent.append((step, skip, loss.detach().float()))
        return skip

    def told(self) -> list[Skipped]:
        """The steps skipped since this was last asked; waits for the device."""
        recent, self._recent = self._recent, []
        if not recent:
            return []
        steps, skips, losses = zip(*recent, strict=True)
        table = zip(steps, torch.stack(skips).tolist(), torch.stack(losses).tolist(), strict=True)
        return [Skipped(step, loss) for step, skip, loss in table if skip]
