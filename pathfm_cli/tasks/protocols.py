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
    are: no standardisation. Loss: mean cross-entropy over the batch.
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
    """Learning rate at `batch_size`."""
    shape: str
    """How the learning rate moves, one of `SHAPES`."""
    optimiser: str = "sgd"
    """`sgd` or `adamw`."""
    momentum: float = 0.0
    """Of SGD."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    weight_decay: float = 0.0
    """Of AdamW, whose other numbers are torch's: betas 0.9 and 0.999, eps 1e-8."""
    patience: float
    """Early stopping: validation epochs without improvement, as a share of the most epochs."""
    patience_up: bool = False
    """Whether that share is rounded up, not down."""
    patience_shipped: dict[str, int] = dataclasses.field(default_factory=dict)
    """Patience of data sets for which it was a number of its own, by their training rows."""
    one_output: bool = False
    """Whether two classes are told apart by one output (binary cross-entropy, cut at 0.5)."""
    binary_monitor: str = "balanced_accuracy"
    """What chooses the state where there are two classes; `balanced_accuracy` for more."""
    shared_start: bool = False
    """Whether all runs begin with the same head and differ in the order of the data alone."""


SHAPES = ("cosine by step", "cosine by epoch", "third for five epochs")
"""Half a cosine to 0 over all steps; the same with one move an epoch, so that it hardly falls
(kaiko-eva 0.0.2); a third of the rate for five epochs, then the rate (kaiko-eva 0.4)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """A protocol on a data set of a given size."""

    batch_size: int
    lr: float
    steps: int
    steps_per_epoch: int
    max_epochs: int
    patience_epochs: int
    shape: str = SHAPES[0]

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...; a cosine is lr (1 + cos(pi moves / steps)) / 2."""
        epoch = step // self.steps_per_epoch
        if self.shape == "third for five epochs":
            return self.lr / 3 if epoch < 5 else self.lr
        moves = step if self.shape == "cosine by step" else epoch
        return self.lr * (1 + math.cos(math.pi * moves / self.steps)) / 2


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="paper",
            steps=12_500,  # paper Table VI
            batch_size=4096,  # paper Table VI
            small_batch_size=256,  # kaiko-eva 0.0.1 for BACH and MHIST; the paper names no number
            lr=0.01,  # paper Table VI
            shape="cosine by step",  # paper Table VI
            momentum=0.9,  # paper Table VI
            nesterov=True,  # paper Table VI
            patience=0.05,  # paper Table VI: max epochs / 20
        ),
        Protocol(
            name="eva-0.0.2",  # what kaiko-eva 0.0.1 and 0.0.2 did, as released
            steps=12_500,
            batch_size=4096,  # CRC, PCam
            small_batch_size=256,  # BACH, MHIST
            lr=0.01,
            shape="cosine by epoch",  # CosineAnnealingLR(T_max=12500), moved once an epoch
            momentum=0.9,
            patience=0.05,
            patience_shipped={"268": 400, "2175": 51, "100000": 24, "262144": 9},
            one_output=True,
            binary_monitor="accuracy",
            shared_start=True,
        ),
        Protocol(
            name="eva-0.4",  # kaiko-eva 0.4.5
            steps=12_500,
            batch_size=256,
            small_batch_size=256,
            lr=3e-4,
            shape="third for five epochs",  # ConstantLR of torch with its defaults
            optimiser="adamw",
            weight_decay=0.01,  # AdamW of torch with its default
            patience=0.2,
            patience_up=True,  # 1250, 7, 278 and 3 epochs for BACH, CRC, MHIST and PCam
            one_output=True,
        ),
    )
}


METHODS = ("linear", "logreg", "knn", "simpleshot")
UNSELECTIVE = ("knn", "simpleshot")
"""Methods with nothing to choose: one state, no strength."""
LR_SCALES = (1e-6, 1e6)
"""Factors on the learning rate outside of which nothing is learnt or everything diverges."""
SELECT = ("val", "test", "last")
"""`last` looks at no split: every run takes all steps, and its last state is reported."""


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
    select: str = "val"
    """Which split chooses the state of each run, one of `SELECT`."""
    method: str = "linear"
    """What is trained, one of `METHODS`; the protocol is that of `linear`."""
    neighbours: int = 20
    """Of `knn`: how many vote (Caron et al. 2021 report 10 and 20)."""
    shots: int | None = None
    """Training images of each class, drawn anew for each run; None takes all."""
    folds: int | str | None = None
    """Cross-validation instead of the splits: a number of folds, or the column that names them."""
    by: str = "group"
    """Column of what is resampled together for intervals, and kept together in folds."""
    lr_scales: tuple[float, ...] = ()
    """Of `linear`: factors on the learning rate to try beside 1; they choose nothing."""

    def __post_init__(self) -> None:
        find(self.protocol)
        if self.method not in METHODS:
            close = difflib.get_close_matches(self.method, METHODS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(METHODS)}"
            raise errors.UsageError(f"There is no method {self.method!r}.", hint)
        if self.method != "linear" and self.protocol != "paper":
            raise errors.UsageError(
                f"--protocol {self.protocol} is one of --method linear, not of {self.method}.",
                "leave one of them out",
            )
        if self.lr_scales and self.method != "linear":
            raise errors.UsageError(
                f"--method {self.method} has no learning rate.", "leave --lr-scales out"
            )
        low, high = LR_SCALES
        if any(not low <= scale <= high or scale == 1 for scale in self.lr_scales):
            raise errors.UsageError(
                f"--lr-scales are factors in {low:g}..{high:g} other than 1, which is there.",
                "--lr-scales 0.1,0.3,3,10",
            )
        if self.method in UNSELECTIVE and self.select == "test":
            raise errors.UsageError(
                f"--method {self.method} has nothing to choose.", "leave --select out"
            )
        if self.select not in SELECT:
            raise errors.UsageError(
                f"--select {self.select} is none of {', '.join(SELECT)}.", "--select last"
            )
        if len({self.train, self.val, self.test}) < 3:
            raise errors.UsageError(
                "--train, --val and --test name three different splits.",
                "--train train --val val --test test",
            )

    @property
    def chooser(self) -> str:
        """As `select`; `last` where the method chooses nothing, whatever was asked."""
        return "last" if self.method in UNSELECTIVE else self.select

    @property
    def chosen(self) -> str:
        """What a split chooses, in words."""
        return "C" if self.method == "logreg" else "the best state of each run"

    def splits(self) -> dict[str, str]:
        """Name of the split for each role."""
        return {role: getattr(self, role) for role in ("train", "val", "test")}

    def settings(self) -> dict[str, Any]:
        """What the `scores` artifact records of how it was made: what has a meaning here."""
        settings = {"task": "probe", **dataclasses.asdict(self), "runs": len(self.seeds())}
        settings["protocol"] = dataclasses.asdict(find(self.protocol))
        settings["lr_scales"] = list(self.lr_scales)
        if self.method != "linear":
            del settings["protocol"], settings["lr_scales"]
        if self.method in UNSELECTIVE:
            del settings["select"]
        if self.method != "knn":
            del settings["neighbours"]
        if self.folds is not None:
            del settings["train"], settings["val"], settings["test"]
        if self.by == "group" and not isinstance(self.folds, int):
            del settings["by"]
        return settings

    def seeds(self) -> list[int]:
        """One a run; a single one where all runs would be the same."""
        alone = self.method != "linear" and self.shots is None
        return [self.seed + run for run in range(1 if alone else self.runs)]


def schedule(protocol: Protocol, n_train: int) -> Schedule:
    """Fit a protocol to a training set of `n_train` rows.

    Batch: `batch_size` if there are that many rows, else `small_batch_size` with the learning rate
    scaled linearly. An epoch keeps its last, smaller batch; the last epoch may be cut by `steps`.
    """
    small = n_train < protocol.batch_size
    batch = protocol.small_batch_size if small else protocol.batch_size
    per_epoch = math.ceil(n_train / batch)
    epochs = math.ceil(protocol.steps / per_epoch)
    share = epochs * protocol.patience
    patience = protocol.patience_shipped.get(
        str(n_train), math.ceil(share) if protocol.patience_up else math.floor(share)
    )
    return Schedule(
        batch_size=batch,
        lr=protocol.lr * batch / protocol.batch_size,
        steps=protocol.steps,
        steps_per_epoch=per_epoch,
        max_epochs=epochs,
        patience_epochs=max(1, patience),
        shape=protocol.shape,
    )
