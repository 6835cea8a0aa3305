"""Schedules as pure functions of the step. Source: facebookresearch/dino, `utils.py`."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Linear warmup from 0 to `start`, then half a cosine from `start` to `end`."""

    start: float
    end: float
    steps: int
    """Length of the whole schedule."""
    warmup_steps: int = 0

    def __call__(self, step: int) -> float:
        """Value at `step`, from 0; after the last step it stays at `end`.

        Warmup reaches `start` on its last step; the cosine never quite reaches `end`, since its
        phase is t / n for t < n.
        """
        if step < self.warmup_steps:
            return self.start * step / max(self.warmup_steps - 1, 1)
        length = max(self.steps - self.warmup_steps, 1)
        phase = min((step - self.warmup_steps) / length, 1.0)
        return self.end + 0.5 * (self.start - self.end) * (1 + math.cos(math.pi * phase))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EpochRamp:
    """A straight line from `start` to `end`, one value an epoch, then `end`.

    DINO's teacher temperature: `epochs` values include both ends.
    """

    start: float
    end: float
    epochs: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        """Value at `step`, from 0."""
        epoch = step // self.steps_per_epoch
        if epoch >= self.epochs:
            return self.end
        return self.start + (self.end - self.start) * epoch / max(self.epochs - 1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepRamp:
    """A straight line from `start` to `end`, both among its values, then `end`.

    DINOv2's teacher temperature: facebookresearch/dinov2, `CosineScheduler` of warmup alone.
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        """Value at `step`, from 0."""
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * step / max(self.steps - 1, 1)


Ramp = EpochRamp | StepRamp
Rule = Literal["linear", "sqrt", "absolute"]

RULES: dict[Rule, str] = {
    "linear": "batch {} / 256",
    "sqrt": "sqrt(batch {} / 1024)",
    "absolute": "1",
}
"""What the rules of `scaled_lr` multiply by, in words."""


def scaled_lr(base_lr: float, batch_size: int, rule: Rule = "linear") -> float:
    """Learning rate of a global batch.

    linear: times the batch over 256 (DINO, `main_dino.py`). sqrt: times the square root of the
    batch over 1024 (DINOv2, `scaling_rule: sqrt_wrt_1024`). absolute: as it is.
    """
    if rule == "absolute":
        return base_lr
    if rule == "sqrt":
        return base_lr * math.sqrt(batch_size / 1024)
    return base_lr * batch_size / 256
