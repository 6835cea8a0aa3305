"""A training recipe: what `pretrain` does, as frozen values read from TOML.

Presets lie in `recipes/`; each of their numbers ends in a comment that names its source.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pathfm_cli import config, errors
from pathfm_cli.data import draw, skips
from pathfm_cli.pretrain import schedule
from pathfm_cli.wsi import pyramid

PRESETS = "pathfm_cli.pretrain.recipes"
WATCHING = ("watch_every", "watch_data", "watch_images", "tensorboard")
"""Settings of `train` that only look on: no part of a run's identity, free to change on resume."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The encoder, by timm name; None keeps the architecture's own value."""

    arch: str
    """timm name, such as `vit_small_patch16_224.dino`."""
    init: str = "scratch"
    """First weights: `scratch`, a timm name with pretrained weights, or a checkpoint's path."""
    patch_size: int | None = None
    """Side of a token in pixels."""
    embed_dim: int | None = None
    """Width of a token."""
    depth: int | None = None
    """Number of blocks."""
    num_heads: int | None = None
    """Attention heads."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block of the student; earlier ones grow to it linearly."""

    def __post_init__(self) -> None:
        rate = self.drop_path_rate
        _check(0 <= rate < 1, f"model.drop_path_rate is {rate}", "0 up to, not including, 1")

    def kwargs(self) -> dict[str, Any]:
        """The arguments that differ from the architecture's own, for `vit.build`."""
        names = ("patch_size", "embed_dim", "depth", "num_heads")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """Multi-crop: two global views and several local ones of every patch."""

    global_size_px: int
    """Side of a global view; the encoder's image size."""
    global_scale: tuple[float, float]
    """Smallest and largest share of the patch's area a global view covers."""
    local_count: int
    """Local views of a patch."""
    local_size_px: int
    """Side of a local view."""
    local_scale: tuple[float, float]
    """Smallest and largest share of the patch's area a local view covers."""

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _check(0 < low <= high <= 1, f"crops.{name} is {[low, high]}", "0 < low <= high <= 1")
        _check(self.local_count >= 0, f"crops.local_count is {self.local_count}", "0 or more")
        for name in ("global_size_px", "local_size_px"):
            value = getattr(self, name)
            _check(8 <= value <= 4096, f"crops.{name} is {value}", "8 to 4096 pixels")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Chances and strengths of the changes to a view; see `augment`."""

    horizontal_flip: float
    """Chance of a left-right mirror image."""
    vertical_flip: float
    """Chance of an upside-down mirror image."""
    jitter: float
    """Chance of colour jitter."""
    brightness: float
    """Factor from 1 - x to 1 + x."""
    contrast: float
    """Factor from 1 - x to 1 + x."""
    saturation: float
    """Factor from 1 - x to 1 + x."""
    hue: float
    """Shift from -x to x, in turns of the colour wheel."""
    grey: float
    """Chance of losing all colour."""
    blur_first: float
    """Chance of a blur on the first global view."""
    blur_second: float
    """Chance of a blur on the second global view."""
    blur_local: float
    """Chance of a blur on a local view."""
    blur_sigma_px: tuple[float, float]
    """Smallest and largest deviation of the blur's Gaussian."""
    solarise_second: float
    """Chance that pixels of the second global view above one half are inverted."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                limit = 0.5 if field.name == "hue" else 1.0
                hint = f"0 to {limit:g}"
                _check(0 <= value <= limit, f"augment.{field.name} is {value}", hint)
        low, high = self.blur_sigma_px
        _check(0 < low <= high, f"augment.blur_sigma_px is {[low, high]}", "0 < low <= high")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The projection head; see `head.DinoHead`."""

    layers: int
    """Linear layers before the prototypes."""
    hidden: int
    """Inner width."""
    bottleneck: int
    """Width that is normalised."""
    prototypes: int
    """Output size K."""
    norm_last_layer: bool
    """Whether every prototype keeps length 1."""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "bottleneck", "prototypes"):
            _check(getattr(self, name) > 0, f"head.{name} is {getattr(self, name)}", "1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """DINO's loss; see `losses.dino`."""

    student_temperature: float
    """Divides the student's logits."""
    teacher_temperature: float
    """Divides the teacher's logits after the ramp."""
    teacher_temperature_start: float
    """Divides the teacher's logits in the first epoch."""
    teacher_temperature_epochs: int
    """Epochs of the ramp between the two."""
    centre_momentum: float
    """Share of the old centre that is kept each step."""
    freeze_last_layer_epochs: int
    """Epochs at the start during which the prototypes stand still."""

    def __post_init__(self) -> None:
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
            _check(getattr(self, name) > 0, f"loss.{name} is {getattr(self, name)}", "above 0")
        value = self.centre_momentum
        _check(0 <= value < 1, f"loss.centre_momentum is {value}", "0 up to, not including, 1")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW and its schedules."""

    base_lr: float
    """Peak learning rate at a batch of 256; scaled linearly with `train.batch_size`."""
    min_lr: float
    """Learning rate at the end."""
    warmup_epochs: float
    """Epochs in which the learning rate rises from 0."""
    weight_decay: float
    """Weight decay at the start; none on biases and other 1-D parameters."""
    weight_decay_end: float
    """Weight decay at the end, reached by a cosine."""
    clip_norm: float
    """Largest gradient norm of each parameter tensor; 0 switches clipping off."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check(value >= 0, f"optim.{field.name} is {value}", "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ema:
    """The teacher: a running mean of the student."""

    momentum: float
    """Share of the old teacher that is kept at the start."""
    momentum_end: float = 1.0
    """The same at the end, reached by a cosine."""

    def __post_init__(self) -> None:
        for name in ("momentum", "momentum_end"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"ema.{name} is {value}", "0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Length, batch and book-keeping of the run."""

    steps: int
    """Optimiser steps of the whole run; the schedules end there."""
    steps_per_epoch: int
    """Steps called an epoch by the other settings; patches are endless, epochs are a convention."""
    batch_size: int
    """Patches a step, over all processes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks: auto is bf16 autocast on CUDA, fp32 elsewhere."""
    compile: bool = False
    """Compile the encoder's blocks with `torch.compile`: minutes at the start, faster on CUDA."""
    distinct_patches: int = 0
    """Train on this many distinct patches over and over (paper, Table IV); 0: always new ones."""
    patches_per_window: int = 1
    """Patches in a row from one window of a slide: fewer tiles to read, less variety in a batch,
    see `data.windows`; 1: each on its own."""
    level: pyramid.Policy = "finer"
    """Level a patch is read from: the nearest finer or equal one, or the `closest` (paper IV-B)."""
    idct: bool = True
    """Decode JPEG tiles at 1/2, 1/4 or 1/8 where a patch is so much coarser, see `wsi.resample`."""
    max_failed: float = skips.MAX_SHARE
    """Share of the patches that may be unreadable, and replaced by others, before the run ends."""
    max_nonfinite: int = 3
    """Steps in a row that may be skipped since their loss or gradient is not finite."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What happens when the teacher's targets no longer tell images apart, see `collapse`."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept; 0: all."""
    export_every: int = 0
    """Steps between exports of the teacher to `exports/`; 0: only at the end."""
    log_every: int = 10
    """Steps between lines of `metrics.jsonl`."""
    probe_patches: int = 512
    """Patches recorded as `patches.parquet`, the fixed set that ODCorr is measured on."""
    watch_every: int = 0
    """Steps between looks at the teacher: ODCorr and RankMe of the fixed set, see `watch`; 0: none.
    Like the other settings of `WATCHING` it changes nothing of what is trained."""
    watch_data: str = ""
    """Images with labels that each look also judges by k-NN and a linear probe: a folder, a table
    or the name of a data set; `--watch` sets it."""
    watch_images: int = 2048
    """Images of each split of `watch_data` that are used at most."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, to `tensorboard/`; needs the extra of that name."""
    seed: int = 0
    """Seed of every random choice."""

    def __post_init__(self) -> None:
        positive = ("steps", "steps_per_epoch", "batch_size", "checkpoint_every", "log_every")
        for name in (*positive, "patches_per_window"):
            _check(getattr(self, name) > 0, f"train.{name} is {getattr(self, name)}", "1 or more")
        _check(0 <= self.max_failed <= 1, f"train.max_failed is {self.max_failed}", "0 to 1")
        free = ("distinct_patches", "export_every", "probe_patches", "watch_every", "seed")
        for name in (*free, "max_nonfinite", "keep_checkpoints"):
            _check(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}", "0 or more")
        _check(self.watch_images > 0, f"train.watch_images is {self.watch_images}", "1 or more")
        _check(
            bool(self.watch_every) or not self.watch_data,
            "train.watch_data says what to look at, and train.watch_every never to look",
            "--set train.watch_every=1000",
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what a run computes."""

    name: str
    """What `model.json` and reports call the recipe."""
    model: Model
    data: draw.SampleConfig
    crops: Crops
    augment: Augment
    head: Head
    loss: Loss
    optim: Optim
    ema: Ema
    train: Train

    def __post_init__(self) -> None:
        _check(
            self.warmup_steps < self.train.steps,
            f"optim.warmup_epochs ({self.warmup_steps} steps) fills the whole run of "
            f"{self.train.steps} steps",
            "--set optim.warmup_epochs=0",
        )

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return round(self.optim.warmup_epochs * self.train.steps_per_epoch)

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warmup."""
        return schedule.scaled_lr(self.optim.base_lr, self.train.batch_size)


def load(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """Read a preset by name, or a TOML file by path, with `a.b=value` assignments on top.

    Raises:
        errors.UsageError: no such recipe, unknown setting, or a value that makes no sense.
    """
    return config.build(Recipe, config.overlay(config.loads(_text(name), name), assignments))


def presets() -> list[str]:
    """Names of the recipes that come with pathfm."""
    files = resources.files(PRESETS).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _text(name: str) -> str:
    if name in presets():
        return (resources.files(PRESETS) / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        raise errors.UsageError(f"There is no recipe file {name}.", f"presets: {_names()}")
    close = difflib.get_close_matches(name, presets(), n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"one of {_names()}, or a FILE.toml"
    raise errors.UsageError(f"There is no recipe {name!r}.", hint)


def _names() -> str:
    return ", ".join(presets())


def _check(holds: bool, message: str, hint: str) -> None:
    if not holds:
        raise errors.UsageError(f"Setting {message}.", hint)
