"""Named protocols of the linear probe: a score without its protocol is not a score.

Imports no torch, so that a wrong request is answered at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

from pathfm_cli import errors


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How the head is trained and which of its states is reported.

    The head is one linear layer (weight and bias, uniform in +-1/sqrt(K)) on the embeddings as they
    are: no standardisation. Loss: mean cross-entropy over the batch, one output per class.
    """

    name: str
    """What `--protocol` calls it."""
    steps: int
    """Most optimiser steps."""
    batch_size: int
    """Batch of data sets with at least that many training rows; the last batch may be smaller."""
    small_batch_size: int
    """Batch of smaller data sets; the learning rate shrinks in proportion."""
    lr: float
    """Learning rate at `batch_size`; falls to 0 along half a cosine over `steps`, no warmup."""
    momentum: float
    """Of SGD."""
    nesterov: bool
    """Whether the momentum is Nesterov's."""
    patience: float
    """Early stopping: validation epochs without improvement, as a share of the most epochs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """A protocol on a data set of a given size."""

    batch_size: int
    lr: float
    steps: int
    steps_per_epoch: int
    max_epochs: int
    patience_epochs: int

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: lr (1 + cos(pi step / steps)) / 2."""
        return self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="paper",
            steps=12_500,  # paper Table VI
            batch_size=4096,  # paper Table VI
            small_batch_size=256,  # kaiko-eva 0.0.1 for BACH and MHIST; the paper names no number
            lr=0.01,  # paper Table VI
            momentum=0.9,  # paper Table VI
            nesterov=True,  # paper Table VI
            patience=0.05,  # paper Table VI: max epochs / 20
        ),
    )
}


def find(name: str) -> Protocol:
    """Return the protocol called `name`.

    Raises:
        errors.UsageError: there is none.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    close = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(PROTOCOLS)}"
    raise errors.UsageError(f"There is no protocol {name!r}.", hint)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What a probe is asked to do."""

    protocol: str = "paper"
    """Name in `PROTOCOLS`."""
    runs: int = 5
    """Runs; the paper reports five."""
    seed: int = 0
    """Run r uses seed + r, so it is the same run however many are made."""
    train: str = "train"
    """Split the heads are trained on."""
    val: str = "val"
    """Split that chooses the state of each run; `valid` and `validation` are found too."""
    test: str = "test"
    """Split that is reported."""

    def __post_init__(self) -> None:
        find(self.protocol)
        if len({self.train, self.val, self.test}) < 3:
            raise errors.UsageError(
                "--train, --val and --test name three different splits.",
                "--train train --val val --test test",
            )

    def splits(self) -> dict[str, str]:
        """Name of the split for each role."""
        return {role: getattr(self, role) for role in ("train", "val", "test")}

    def settings(self) -> dict[str, Any]:
        """What the `scores` artifact records of how it was made."""
        protocol = dataclasses.asdict(find(self.protocol))
        return {"task": "probe", **dataclasses.asdict(self), "protocol": protocol}


def schedule(protocol: Protocol, n_train: int) -> Schedule:
    """Fit a protocol to a training set of `n_train` rows.

    Batch: `batch_size` if there are that many rows, else `small_batch_size` with the learning rate
    scaled linearly. An epoch keeps its last, smaller batch; the last epoch may be cut by `steps`.
    """
    small = n_train < protocol.batch_size
    batch = protocol.small_batch_size if small else protocol.batch_size
    per_epoch = math.ceil(n_train / batch)
    epochs = math.ceil(protocol.steps / per_epoch)
    return Schedule(
        batch_size=batch,
        lr=protocol.lr * batch / protocol.batch_size,
        steps=protocol.steps,
        steps_per_epoch=per_epoch,
        max_epochs=epochs,
        patience_epochs=max(1, math.floor(epochs * protocol.patience)),
    )
