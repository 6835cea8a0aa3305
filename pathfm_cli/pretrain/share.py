"""How the batch of a step is shared: over processes, and within each over parts one after another.

Accumulation keeps the global batch on fewer devices. It changes a step by rounding only: the loss
is a mean over patches; all parts are judged by the centre and the weights from before the step; the
centre then moves once, by the mean of all parts; gradients are clipped when they are complete. So
1 process x 4 parts trains as 4 processes x 1 part do, and a run may go on with another split.
Without accumulation a smaller batch (`train.batch_size`) rescales the rate by `optim.lr_rule`.
"""

from __future__ import annotations

import dataclasses

from pathfm_cli import errors


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Who takes which part of a batch; batch_size = processes x parts x at_once."""

    batch_size: int
    processes: int
    parts: int

    @property
    def at_once(self) -> int:
        """Patches that one process takes at once."""
        return self.batch_size // self.processes // self.parts

    def __str__(self) -> str:
        """As in `batch 1024 = 2 processes x 2 parts x 256`."""
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        parts = f"{self.parts} part{'s' if self.parts > 1 else ''}"
        return f"batch {self.batch_size} = {processes} x {parts} x {self.at_once}"


def share(batch_size: int, processes: int, *, device_batch: int = 0, parts: int = 0) -> Share:
    """Share a batch out evenly.

    Args:
        batch_size: patches a step, over all processes.
        processes: how many there are.
        device_batch: patches that a process takes at once at most; 0: no bound.
        parts: parts of each process; 0: the fewest even ones within `device_batch`.

    Raises:
        errors.UsageError: it cannot be shared evenly.
    """
    own, rest = divmod(batch_size, processes)
    if rest:
        raise errors.UsageError(
            f"A batch of {batch_size} patches cannot be shared by {processes} processes.",
            f"--set train.batch_size={(own + 1) * processes}",
        )
    if not parts:
        bound = device_batch or own
        parts = next(p for p in range(1, own + 1) if own % p == 0 and own // p <= bound)
    if own % parts:
        raise errors.UsageError(
            f"A share of {own} patches cannot be taken in {parts} parts.",
            f"--accumulate {next(p for p in range(min(parts, own), 0, -1) if own % p == 0)}",
        )
    return Share(batch_size=batch_size, processes=processes, parts=parts)
