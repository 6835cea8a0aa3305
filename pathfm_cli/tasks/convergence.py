"""Attempts at training a decoder, and the rule that says which converged.

A run converged if all its losses are finite and its foreground Dice on its own training crops is
above that of the best constant map, which calls every pixel the same class. A decoder that has
found nothing does not pass it, whatever its learning rate; the test images have no say.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pathfm_cli.tasks import decoder, masks, metrics, segmentation, tokens

RULE = (
    "all losses finite, and Dice (micro over foreground) on the training crops above that of the "
    "best map of one class"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One trained decoder.

    Attributes:
        number: 0 for the first; the run's number in all tables.
        seed: of its weights and of the order of its crops.
        module: a `decoder.Decoder`.
        losses: mean of each epoch; the last may be not finite.
        train_dice: micro over foreground on the training crops; NaN if a loss is not finite.
        constant_dice: that of the best map of one class.
    """

    number: int
    seed: int
    module: Any
    losses: list[float]
    train_dice: float
    constant_dice: float

    @property
    def converged(self) -> bool:
        """Whether it passes `RULE`."""
        return math.isfinite(self.losses[-1]) and self.train_dice > self.constant_dice

    def told(self) -> dict[str, Any]:
        """What the JSON document says of it."""
        return {
            "run": self.number,
            "seed": self.seed,
            "converged": self.converged,
            "losses": [loss if math.isfinite(loss) else None for loss in self.losses],
            "train_dice": self.train_dice if math.isfinite(self.train_dice) else None,
            "constant_dice": self.constant_dice,
        }

    def said(self) -> str:
        """What a person is told where it did not converge."""
        if not math.isfinite(self.losses[-1]):
            return f"run {self.number} diverged in epoch {len(self.losses)}"
        return (
            f"run {self.number} did not converge: Dice {self.train_dice:.3f} on its training crops,"
            f" a map of one class has {self.constant_dice:.3f}"
        )


def attempts(
    crops: tokens.Crops,
    classes: int,
    config: segmentation.Config,
    advance: Callable[[int], None],
) -> Iterator[Attempt]:
    """Train decoders until `config.runs` are done or, if so asked, have converged.

    Args:
        crops: what to train on.
        classes: C.
        config: which decoder, how, how often.
        advance: called with 1 after each step.
    """
    width = crops.take(torch.zeros(1, dtype=torch.int64))[0].shape[-1]
    good = 0
    for number in range(config.attempts):
        seed = config.seed + number
        module = decoder.build(config.decoder, width, classes, seed).to(crops.labels_NSS.device)
        losses = decoder.fit(module, crops, config.training, seed, advance)
        table = confusion(module, crops, classes)
        attempt = Attempt(
            number=number,
            seed=seed,
            module=module,
            losses=losses,
            train_dice=float(metrics.dice_micro_foreground(table))
            if math.isfinite(losses[-1])
            else math.nan,
            constant_dice=constant_dice(table),
        )
        yield attempt
        good += attempt.converged or not config.keep_converged
        if good == config.runs:
            return


def kept(found: list[Attempt], config: segmentation.Config) -> list[int]:
    """Numbers of the attempts whose mean is the result."""
    return [one.number for one in found if one.converged or not config.keep_converged]


def confusion(module: Any, crops: tokens.Crops, classes: int) -> metrics.Counts:
    """Confusion table (C, C) of a decoder on the crops it was trained on."""
    size_px = crops.labels_NSS.shape[-1]
    table = np.zeros((classes, classes), dtype=np.int64)
    for picked in torch.split(torch.arange(len(crops)), tokens.BATCH):
        tokens_BhwD, labels_BSS = crops.take(picked)
        with torch.inference_mode():
            predicted = module.shares(tokens_BhwD, size_px).argmax(1).cpu().numpy()
        truth = labels_BSS.cpu().numpy()
        known = truth != masks.IGNORE
        table += metrics.confusion(truth[known], predicted[known], classes)
    return table


def constant_dice(table: metrics.Counts) -> float:
    """Largest micro foreground Dice of a map of one class: 2 n_c / (foreground + all pixels)."""
    of_class = table.sum(axis=-1)
    return float(2 * of_class[1:].max() / (of_class[1:].sum() + of_class.sum()))
