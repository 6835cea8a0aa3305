"""What a segmentation is asked to do, checked before torch is imported or a picture is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import masks

DECODERS = ("linear",)
FILES = {
    "decoder": "decoder.safetensors",
    "predictions": "predictions",
    "overlays": "overlays",
}
NAMES = ("scores.parquet", "scores.json", *FILES.values())
"""What a result folder holds; a folder with anything else is never replaced."""


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What a segmentation is asked to do."""

    decoder: str = "linear"
    """Name in `DECODERS`."""
    instances: bool = False
    """Label maps hold object numbers; every object is foreground."""
    crops: int = 512
    """Random crops the decoder is trained on; their tokens stay in memory."""
    size_px: int = 224
    """Side of crops and windows (paper IV-D2)."""
    stride_px: int = 194
    """Distance of test windows (paper IV-D2)."""
    seed: int = 0
    """Chooses and orders the crops."""
    training: Training = Training()
    """How the decoder is trained."""

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise errors.UsageError(
                f"There is no decoder {self.decoder!r}.", f"known: {', '.join(DECODERS)}"
            )
        if self.crops < 1:
            raise errors.UsageError(f"--crops {self.crops} trains nothing.", "--crops 512")


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a result of ours, before any input is read.

    Raises:
        errors.OutputClash: it does, or `out` is a file.
    """
    if not out.exists():
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
    """Images by split.

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
