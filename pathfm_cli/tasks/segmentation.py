"""What a segmentation is asked to do, checked before torch is imported or a picture is read."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.tasks import masks

DECODERS = ("linear", "conv", "mask2former")
FEATURES = ("post-norm", "pre-norm")
"""Patch tokens after the encoder's last norm, or before it."""
FILES = {
    "decoder": "decoder.safetensors",
    "predictions": "predictions",
    "overlays": "overlays",
}
MAX_LR = 100.0
"""No decoder learns with more, and float32 overflows with much more."""
MAX_CROPS = 1_000_000
NAMES = ("scores.parquet", "scores.json", *FILES.values())
"""What a result folder holds; a folder with anything else is never replaced."""
MAX_ATTEMPTS = 3
"""Attempts for each run that is to converge."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a decoder is trained: AdamW, a cosine learning rate to 0."""

    epochs: int = 20
    """Passes over the crops."""
    batch_size: int = 16
    """Crops a step; the last batch of an epoch may be smaller."""
    lr: float = 1e-3
    """First learning rate."""
    weight_decay: float = 0.01
    """AdamW's default."""
    clip_norm: float | None = None
    """Largest norm of the gradient; larger ones are scaled down. None: as it comes."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise errors.UsageError(f"--epochs {self.epochs} trains nothing.", "--epochs 20")
        if not 0 < self.lr <= MAX_LR:
            raise errors.UsageError(
                f"--lr {self.lr} is no learning rate above 0 and up to {MAX_LR:g}.", "--lr 1e-3"
            )

    def steps(self, crops: int) -> int:
        """Optimiser steps over that many crops."""
        return self.epochs * math.ceil(crops / self.batch_size)


TRAININGS = {
    "linear": Training(),
    "conv": Training(),
    # Mask2Former, arXiv 2112.01527, 4.1: weight decay .05; its code clips at .01.
    "mask2former": Training(weight_decay=0.05, clip_norm=0.01),
}
"""How each decoder is trained unless told otherwise."""


def training(decoder: str, **changes: Any) -> Training:
    """The training of a decoder, with what is not None of `changes` put in."""
    chosen = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(TRAININGS.get(decoder, Training()), **chosen)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What a segmentation is asked to do."""

    decoder: str = "linear"
    """Name in `DECODERS`."""
    features: str = "post-norm"
    """Name in `FEATURES`."""
    labels: str = "classes"
    """Name in `labelmaps.MEANINGS`: what the numbers of a label map say."""
    classes: tuple[str, ...] = ()
    """Names of the classes, background first; empty: the numbers up to the largest of train."""
    crops: int = 512
    """Random crops the decoder is trained on, the same for all runs."""
    size_px: int = 224
    """Side of crops and windows (paper IV-D2)."""
    stride_px: int = 194
    """Distance of test windows (paper IV-D2)."""
    runs: int = 1
    """Decoders that are trained, run r from `seed` + r (paper IV-D2: 3)."""
    keep_converged: bool = False
    """Train up to `MAX_ATTEMPTS` times as many, until `runs` have converged, and keep those."""
    seed: int = 0
    """Chooses the crops; starts the decoders and orders their crops."""
    training: Training = Training()
    """How a decoder is trained."""

    def __post_init__(self) -> None:
        for name, known, flag, verb in (
            (self.decoder, DECODERS, "decoder", "is"),
            (self.features, FEATURES, "features", "are"),
        ):
            if name not in known:
                raise errors.UsageError(
                    f"There {verb} no {flag} {name!r}.", f"--{flag} {' | '.join(known)}"
                )
        if not 1 <= self.crops <= MAX_CROPS:
            raise errors.UsageError(
                f"--crops {self.crops} is not from 1 to {MAX_CROPS:,}.", "--crops 512"
            )
        if not 0 < self.stride_px <= self.size_px:
            raise errors.UsageError(
                f"Windows of {self.size_px} px at a distance of {self.stride_px} px leave gaps.",
                f"--stride {self.size_px}",
            )
        if self.runs < 1:
            raise errors.UsageError(f"--runs {self.runs} trains nothing.", "--runs 3")

    @property
    def attempts(self) -> int:
        """The most decoders that are trained."""
        return self.runs * (MAX_ATTEMPTS if self.keep_converged else 1)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a result of ours, before any input is read.

    Raises:
        errors.OutputClash: it does, or `out` is a file or a link that leads nowhere.
        errors.UsageError: `out` is -.
        errors.Unwritable: no folder can be made there.
    """
    if str(out) == "-":
        raise errors.UsageError("The result is a folder, stdout is none.", "-o FOLDER")
    disk.refuse_address(out)
    disk.check_place(os.path.realpath(out))
    if not out.exists():
        if out.is_symlink():
            raise errors.OutputClash(f"{out} is a link that leads nowhere.", "-o NEW_FOLDER")
        return
    if not out.is_dir():
        raise errors.OutputClash(f"{out} is a file.", "-o FOLDER")
    names = sorted(path.name for path in out.iterdir())
    strange = [name for name in names if name not in NAMES]
    if strange or (names and "scores.parquet" not in names and not overwrite):
        raise errors.OutputClash(f"{out} holds {(strange or names)[0]} already.", "-o NEW_FOLDER")
    if names and not overwrite:
        try:
            artifacts.read_header(out / "scores.parquet", "scores")
        except errors.InputError as error:
            raise errors.OutputClash(f"{out} holds no pathfm scores.", "-o NEW_FOLDER") from error


def split(items: Sequence[masks.Item]) -> dict[str, list[masks.Item]]:
    """Images by split, also by those that are neither train nor test.

    Raises:
        errors.InputError: none in train or none in test.
    """
    found: dict[str, list[masks.Item]] = {}
    for item in items:
        found.setdefault(item.split, []).append(item)
    if not {"train", "test"} <= found.keys():
        raise errors.InputError(
            f"Images of train and test are needed; the splits are {', '.join(sorted(found))}.",
            "name them in the column split",
        )
    return found


def left_out(items: Sequence[masks.Item]) -> tuple[str, ...]:
    """A sentence about images that are neither train nor test, if there are any."""
    splits = [item.split for item in items if item.split not in masks.SPLITS]
    named = ", ".join(sorted(set(splits))[:3])
    return (f"{len(splits)} images are left out: their split is {named}",) if splits else ()


def plan(items: Sequence[masks.Item], spec: str, out: Path, config: Config) -> dict[str, Any]:
    """What `segment` would do; loads no encoder and reads no pixels.

    Raises:
        errors.InputError: as `split`.
    """
    return {
        "images": {name: len(chosen) for name, chosen in split(items).items()},
        "model": spec,
        **{k: v for k, v in dataclasses.asdict(config).items() if k != "training"},
        **dataclasses.asdict(config.training),
        "writes": [str(out / name) for name in NAMES],
    }
