"""What turns the patch tokens of a frozen encoder into a class for every pixel, and its training.

Legend: B = batch, h x w = grid of tokens, D = width, C = classes, S = side of a crop in pixels.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pathfm_cli.data import draw
from pathfm_cli.tasks import masks, segmentation

ORDER = 104
"""Purpose of the random numbers that order the crops of an epoch."""
CONV_WIDTH = 64


class Decoder(Protocol):
    """What is trained on tokens (B, h, w, D) of square crops."""

    def loss(self, tokens_BhwD: torch.Tensor, labels_BSS: torch.Tensor) -> torch.Tensor:
        """What training makes small: a scalar.

        Args:
            tokens_BhwD: float32.
            labels_BSS: uint8 classes, `masks.IGNORE` where nothing is known.
        """

    def shares(self, tokens_BhwD: torch.Tensor, size_px: int) -> torch.Tensor:
        """How much speaks for each class, (B, C, S, S) from 0 to 1."""


class Dense(nn.Module, abc.ABC):
    """A decoder that gives logits, trained by cross-entropy over the known pixels."""

    @abc.abstractmethod
    def logits(self, tokens_BhwD: torch.Tensor) -> torch.Tensor:
        """Logits (B, C, h', w') on a grid of any size."""

    def loss(self, tokens_BhwD: torch.Tensor, labels_BSS: torch.Tensor) -> torch.Tensor:
        """As `Decoder.loss`."""
        logits_BCSS = enlarge(self.logits(tokens_BhwD), labels_BSS.shape[-1])
        return functional.cross_entropy(logits_BCSS, labels_BSS.long(), ignore_index=masks.IGNORE)

    def shares(self, tokens_BhwD: torch.Tensor, size_px: int) -> torch.Tensor:
        """As `Decoder.shares`: probabilities."""
        return enlarge(self.logits(tokens_BhwD), size_px).softmax(1)


class Linear(Dense):
    """One linear layer on every token, its logits enlarged bilinearly.

    The problem is convex, so it starts at zero.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(width, classes)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def logits(self, tokens_BhwD: torch.Tensor) -> torch.Tensor:
        """As `Dense.logits`."""
        logits: torch.Tensor = self.classify(tokens_BhwD)
        return logits.permute(0, 3, 1, 2)


class Conv(Dense):
    """Two 3 x 3 convolutions of `CONV_WIDTH` channels, the grid doubled between them."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, CONV_WIDTH, 3, padding=1)
        self.second = nn.Conv2d(CONV_WIDTH, CONV_WIDTH, 3, padding=1)
        self.classify = nn.Conv2d(CONV_WIDTH, classes, 1)

    def logits(self, tokens_BhwD: torch.Tensor) -> torch.Tensor:
        """As `Dense.logits`."""
        grid = self.first(tokens_BhwD.permute(0, 3, 1, 2)).relu()
        finer = functional.interpolate(grid, scale_factor=2.0, mode="bilinear")
        logits: torch.Tensor = self.classify(self.second(finer).relu())
        return logits


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


def build(name: str, width: int, classes: int, seed: int) -> Any:
    """A fresh decoder by its name in `segmentation.DECODERS`: an `nn.Module` and a `Decoder`.

    Args:
        name: which.
        width: D.
        classes: C.
        seed: of its weights.

    Raises:
        errors.MissingExtra: transformers is absent.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "mask2former":
            from pathfm_cli.tasks import mask2former

            return mask2former.Mask2Former(width, classes)
        return {"linear": Linear, "conv": Conv}[name](width, classes)


class Batches(Protocol):
    """Crops by number, as `tokens.Crops`."""

    def __len__(self) -> int: ...

    def take(self, picked_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, h, w, D) and classes (B, S, S)."""


def fit(
    module: Any,
    crops: Batches,
    training: segmentation.Training,
    seed: int,
    advance: Callable[[int], None],
) -> list[float]:
    """Train a decoder; it ends in eval mode.

    Args:
        module: an `nn.Module` and a `Decoder`, on the device of the crops.
        crops: what to train on.
        training: how.
        seed: orders the crops.
        advance: called with 1 after each step.

    Returns:
        Mean loss of each epoch. The first that is not finite is the last: training ended there.
    """
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay)
    steps, done = training.steps(len(crops)), 0
    means: list[float] = []
    where = parameters[0].device
    module.train()
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(training.epochs):
            drawn = draw.rng(seed, epoch, ORDER).permutation(len(crops)).astype(np.int64)
            batches = torch.split(torch.from_numpy(drawn), training.batch_size)
            total = torch.zeros((), device=where)
            for picked in batches:
                for group in optimiser.param_groups:
                    group["lr"] = training.lr * (1 + math.cos(math.pi * done / steps)) / 2
                optimiser.zero_grad()
                loss = module.loss(*crops.take(picked))
                loss.backward()
                if training.clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, training.clip_norm)
                optimiser.step()
                total += loss.detach()
                done += 1
                advance(1)
            means.append(float(total) / len(batches))
            if not math.isfinite(means[-1]):
                advance(steps - done)
                break
    module.eval()
    return means
