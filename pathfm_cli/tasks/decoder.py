"""What turns the patch tokens of a frozen encoder into a class for every pixel, and its training.

Legend: B = batch, h x w = grid of tokens, D = width, C = classes, S = side of a crop in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pathfm_cli import errors
from pathfm_cli.data import draw
from pathfm_cli.tasks import masks

ORDER = 104
"""Purpose of the random numbers that order the crops of an epoch."""
Report = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a decoder is trained: AdamW, cross-entropy over pixels, cosine learning rate to 0."""

    epochs: int = 20
    """Passes over the crops."""
    batch_size: int = 16
    """Crops a step; the last batch of an epoch may be smaller."""
    lr: float = 1e-3
    """First learning rate."""
    weight_decay: float = 0.01
    """AdamW's default."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise errors.UsageError(f"--epochs {self.epochs} trains nothing.", "--epochs 20")

    def steps(self, crops: int) -> int:
        """Optimiser steps over that many crops."""
        return self.epochs * math.ceil(crops / self.batch_size)


class Linear(nn.Module):
    """One linear layer on every token, its logits enlarged bilinearly.

    The problem is convex, so it starts at zero.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, classes)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward(self, tokens_BhwD: torch.Tensor, size_px: int) -> torch.Tensor:
        """Return logits (B, C, S, S)."""
        logits_BChw = self.classify(tokens_BhwD).permute(0, 3, 1, 2)
        return functional.interpolate(logits_BChw, size=size_px, mode="bilinear")


DECODERS: dict[str, type[Linear]] = {"linear": Linear}


def find(name: str) -> type[Linear]:
    """Return the decoder called `name`.

    Raises:
        errors.UsageError: there is none.
    """
    if name not in DECODERS:
        raise errors.UsageError(f"There is no decoder {name!r}.", f"known: {', '.join(DECODERS)}")
    return DECODERS[name]


def fit(
    tokens_NhwD: torch.Tensor,
    labels_NSS: torch.Tensor,
    classes: int,
    name: str,
    training: Training,
    seed: int,
    progress: Report,
) -> Linear:
    """Train a decoder on cached tokens of crops.

    Args:
        tokens_NhwD: (N, h, w, D) float32.
        labels_NSS: (N, S, S) uint8 classes, `masks.IGNORE` where nothing is known.
        classes: C.
        name: which decoder.
        training: how.
        seed: orders the crops.
        progress: called with (steps done, steps).
    """
    module = find(name)(tokens_NhwD.shape[-1], classes).to(tokens_NhwD.device)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    count, size_px = len(tokens_NhwD), labels_NSS.shape[-1]
    steps = training.steps(count)
    done = 0
    for epoch in range(training.epochs):
        order = torch.from_numpy(draw.rng(seed, epoch, ORDER).permutation(count).astype(np.int64))
        for picked in torch.split(order.to(tokens_NhwD.device), training.batch_size):
            for group in optimiser.param_groups:
                group["lr"] = training.lr * (1 + math.cos(math.pi * done / steps)) / 2
            logits_BCSS = module(tokens_NhwD[picked], size_px)
            truth_BSS = labels_NSS[picked].long()
            optimiser.zero_grad()
            loss: Any = functional.cross_entropy(logits_BCSS, truth_BSS, ignore_index=masks.IGNORE)
            loss.backward()
            optimiser.step()
            done += 1
            progress(done, steps)
    return module.eval()
