"""What turns the patch tokens of a frozen encoder into a class for every pixel, and its training.

Legend: B = batch, h x w = grid of tokens, D = width, C = classes, S = side of a crop in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pathfm_cli.data import draw
from pathfm_cli.tasks import masks, segmentation

ORDER = 104
"""Purpose of the random numbers that order the crops of an epoch."""


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
        return enlarge(self.classify(tokens_BhwD).permute(0, 3, 1, 2), size_px)


def enlarge(values_BChw: torch.Tensor, size_px: int) -> torch.Tensor:
    """Bilinear interpolation to (B, C, S, S), half-pixel centres, as two matrix products.

    The same numbers as `functional.interpolate`, forward and backward in a third of the time.
    """
    rows_Sh, columns_Sw = (
        functional.interpolate(
            torch.eye(side, device=values_BChw.device)[None], size=size_px, mode="linear"
        )[0].T
        for side in values_BChw.shape[2:]
    )
    return rows_Sh @ values_BChw @ columns_Sw.T


DECODERS = {"linear": Linear}
"""By the names in `segmentation.DECODERS`."""


def fit(
    tokens_NhwD: torch.Tensor,
    labels_NSS: torch.Tensor,
    classes: int,
    name: str,
    training: segmentation.Training,
    seed: int,
    advance: Callable[[int], None],
) -> Linear:
    """Train a decoder on cached tokens of crops.

    Args:
        tokens_NhwD: (N, h, w, D) float32.
        labels_NSS: (N, S, S) uint8 classes, `masks.IGNORE` where nothing is known.
        classes: C.
        name: which decoder.
        training: how.
        seed: orders the crops.
        advance: called with 1 after each step.
    """
    module = DECODERS[name](tokens_NhwD.shape[-1], classes).to(tokens_NhwD.device)
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
            advance(1)
    return module.eval()
