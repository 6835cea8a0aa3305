"""A training recipe: what `pretrain` does, as frozen values read from TOML.

Presets lie in `recipes/`; each of their numbers ends in a comment that names its source.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pathfm_cli import config, errors
from pathfm_cli.data import draw, skips
from pathfm_cli.pretrain import masks as masking
from pathfm_cli.pretrain import objective, schedule, sections
from pathfm_cli.wsi import pyramid

PRESETS = "pathfm_cli.pretrain.recipes"
ASIDE = (
    *("compile", "max_failed", "max_nonfinite", "on_collapse"),
    *("checkpoint_every", "keep_checkpoints", "export_every", "log_every"),
    *("watch_every", "watch_data", "watch_images", "tensorboard"),
)
"""Settings of `train` that decide no weight: no part of a run's identity, free on resume."""

_ORDINALS = {2: "second", 3: "third"}

_check = sections.check


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW and its schedules."""

    base_lr: float
    """Peak learning rate before `lr_rule`."""
    lr_rule: schedule.Rule = "linear"
    """How the peak follows `train.batch_size`: linear (over 256, DINO), sqrt (of it over 1024,
    DINOv2), absolute (not at all)."""
    lr_factor: float = 1.0
    """Multiplies the peak; the paper's second phase halves it."""
    min_lr: float
    """Learning rate at the end."""
    warmup_epochs: float
    """Epochs in which the learning rate rises from 0."""
    weight_decay: float
    """Weight decay at the start; none on biases and other 1-D parameters."""
    weight_decay_end: float
    """Weight decay at the end, reached by a cosine."""
    clip_norm: float
    """Largest gradient norm of each tensor, or part, see `clip_by`; 0 switches clipping off."""
    clip_by: Literal["tensor", "part"] = "tensor"
    """What is clipped for itself: every parameter tensor (DINO), or encoder and heads (DINOv2)."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it, see `layers`; 1: none."""
    patch_embed_lr: float = 1.0
    """Factor of the learning rate of the patch embedding, on top (DINOv2: 0.2); 1: none."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                _check(value >= 0, f"optim.{field.name} is {value}", "0 or more")
        for name in ("layer_decay", "patch_embed_lr"):
            value = getattr(self, name)
            _check(0 < value <= 1, f"optim.{name} is {value}", "above 0, up to 1")


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
    device_batch: int = 0
    """Patches that a process takes at once at most; it accumulates over a larger share of the
    batch, see `share`. 0: no bound."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks: auto is bf16 autocast on CUDA, fp32 elsewhere."""
    compile: bool = False
    """Compile the encoder's blocks with `torch.compile`: minutes at the start, faster on CUDA."""
    shard_above: int = 500_000_000
    """Parameters of the student, heads included, above which several processes share its weights,
    gradients and moments (FSDP2), see `shard`; below, each has all of them (DDP)."""
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
    Like the other settings of `ASIDE` it decides no weight."""
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
        free = ("device_batch", "distinct_patches", "export_every", "probe_patches", "watch_every")
        for name in (*free, "shard_above", "max_nonfinite", "keep_checkpoints", "seed"):
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
    method: objective.Method = "dino"
    """What a step does: DINO, see `dino`, or DINOv2, see `dinov2`."""
    phase: int = 1
    """1; 2 for the paper's second: frozen sections come in, the peak learning rate is halved; 3 for
    a finish on larger views, where the recipe has one."""
    model: sections.Model
    start: sections.Start = sections.Start()
    data: draw.SampleConfig
    crops: sections.Crops
    augment: sections.Augment
    masks: masking.Masking = masking.Masking(share=0.5, ratio=(0.1, 0.5))
    head: objective.Head
    ibot_head: objective.Head | None = None
    """The patch objective's own head; None: it shares `head`."""
    loss: objective.Loss
    optim: Optim
    ema: Ema
    train: Train

    def __post_init__(self) -> None:
        objective.check(self.method, self.ibot_head, self.loss, self.masks)
        _check(
            self.start.centre == "fresh" or self.loss.centring == "ema",
            "start.centre is 'keep', but Sinkhorn-Knopp has none",
            "--set start.centre=fresh",
        )
        _check(
            self.method == "dino" or self.model.global_pool != "avg",
            "model.global_pool is 'avg', but method is dinov2, which trains the class token",
            "--set model.global_pool=token",
        )
        _check(
            self.warmup_steps < self.train.steps,
            f"optim.warmup_epochs ({self.warmup_steps} steps) fills the whole run of "
            f"{self.train.steps} steps",
            "--set optim.warmup_epochs=0",
        )
        side_px = self.crops.largest_px
        _check(
            side_px <= self.data.size_px,
            f"data.size_px is {self.data.size_px}, less than the {side_px} px that a view with "
            "crops.context_scale may take",
            f"--set data.size_px={side_px}",
        )

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return round(self.optim.warmup_epochs * self.train.steps_per_epoch)

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warmup."""
        optim = self.optim
        return optim.lr_factor * schedule.scaled_lr(
            optim.base_lr, self.train.batch_size, optim.lr_rule
        )

    @property
    def peak_lr_words(self) -> str:
        """How the learning rate after the warmup comes about."""
        optim = self.optim
        factors = [f"base {optim.base_lr:g}"]
        if optim.lr_rule != "absolute":
            factors.append(schedule.RULES[optim.lr_rule].format(self.train.batch_size))
        if optim.lr_factor != 1:
            factors.append(f"{optim.lr_factor:g}")
        return f"peak lr {self.peak_lr:g} = {' x '.join(factors)}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How long a recipe trains in the paper's words: table `length` of its TOML.

    `load` turns it into steps by the batch, so that a smaller batch sees as many patches;
    `train.steps` and `train.steps_per_epoch` win where they are given.
    """

    epochs: float
    """Epochs of the whole run."""
    patches_per_epoch: int
    """Patches called an epoch."""

    def __post_init__(self) -> None:
        for name in ("epochs", "patches_per_epoch"):
            _check(getattr(self, name) > 0, f"length.{name} is {getattr(self, name)}", "above 0")

    def steps(self, batch_size: int) -> tuple[int, int]:
        """Steps of the run, and of an epoch."""
        per_epoch = max(1, round(self.patches_per_epoch / batch_size))
        return max(1, round(self.epochs * per_epoch)), per_epoch


def load(name: str, assignments: Sequence[str] = (), phase: int | None = None) -> Recipe:
    """Read a preset by name, or a TOML file by path, with `a.b=value` assignments on top.

    Args:
        name: of the preset or file.
        assignments: as `--set` takes them; the last word on every setting.
        phase: 2 lays the recipe's table `phase2` over it, 3 `phase3`; None: as the recipe says.

    Raises:
        errors.UsageError: no such recipe, unknown setting, a value that makes no sense, or a later
            phase without the run to start from.
    """
    tree = config.overlay(config.loads(_text(name), name), ())
    later = {number: tree.pop(f"phase{number}", None) for number in _ORDINALS}
    if phase not in (None, tree.get("phase", 1)):
        tree = config.merge(tree, _phase(name, later, phase))
        if not any(text.partition("=")[0].strip() == "model.init" for text in assignments):
            raise errors.UsageError(
                f"The {_ORDINALS[phase]} phase goes on from the run of the one before.",
                f"--phase {phase} --init run{phase - 1}/",
            )
    return config.build(Recipe, _timed(config.overlay(tree, assignments)))


def _phase(name: str, later: Mapping[int, Any], phase: int) -> dict[str, Any]:
    """The table of a phase, if the recipe has one of that number."""
    changes = later.get(phase)
    if not isinstance(changes, dict):
        known = [f"--phase {number}" for number, table in later.items() if table]
        raise errors.UsageError(
            f"The recipe {name} has no phase {phase}.", " or ".join(known) or "leave --phase out"
        )
    return {**changes, "phase": phase}


def _timed(tree: dict[str, Any]) -> dict[str, Any]:
    """The recipe with steps in the place of epochs."""
    train = tree.get("train")
    if "length" not in tree or not isinstance(train, dict):
        return tree
    length = config.build(Length, tree.pop("length"), "length.")
    batch_size = train.get("batch_size")
    # What is no batch is refused later, for what it is.
    size = batch_size if isinstance(batch_size, int) and batch_size > 0 else 1
    steps, per_epoch = length.steps(size)
    return {**tree, "train": {"steps": steps, "steps_per_epoch": per_epoch, **train}}


def presets() -> list[str]:
    """Names of the recipes that come with pathfm."""
    files = resources.files(PRESETS).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _text(name: str) -> str:
    if name in presets():
        return (resources.files(PRESETS) / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise errors.UsageError(
                f"{path} is not valid TOML: it is no UTF-8 text.", "save it as UTF-8"
            ) from error
    if path.suffix == ".toml":
        raise errors.UsageError(f"There is no recipe file {name}.", f"presets: {_names()}")
    close = difflib.get_close_matches(name, presets(), n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"one of {_names()}, or a FILE.toml"
    raise errors.UsageError(f"There is no recipe {name!r}.", hint)


def _names() -> str:
    return ", ".join(presets())
