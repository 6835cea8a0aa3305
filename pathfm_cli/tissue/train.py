"""Training the tissue U-Net on scenes made from pairs; resumable, the same for any worker count."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy import typing as npt
from safetensors import torch as safetensors_torch
from torch import nn

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.model import device as devices
from pathfm_cli.model import unet
from pathfm_cli.tissue import compose, pairs, scores

CHECKPOINT_EVERY = 50
"""Steps between checkpoints."""
AHEAD = 3
"""Batches that are made while one is learned from."""
FRESH = 64
"""Scenes, never trained on, that the finished network is scored on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How the network learns; every field shapes the weights."""

    mpp: float = 8.0
    """Resolution of the thumbnails, um/px."""
    steps: int = 800
    batch: int = 8
    size_px: int = 256
    """Side of a scene."""
    lr: float = 3e-3
    """Peak of a cosine schedule after `WARMUP` of the steps."""
    weight_decay: float = 1e-4
    seed: int = 0
    widths: tuple[int, ...] = unet.WIDTHS
    precision: str = "bf16"
    """Arithmetic of the passes; fp32 is faster on a CPU without bf16 instructions."""

    def __post_init__(self) -> None:
        if not 1 <= self.mpp <= 64:
            raise errors.UsageError(f"mpp {self.mpp:g} is no thumbnail.", "--mpp 8")
        if self.steps < 1 or self.batch < 1:
            raise errors.UsageError("steps and batch must be 1 or more.", "--steps 800")
        if not 0 <= self.seed < 2**64:
            raise errors.UsageError("seed is from 0 to 2^64 - 1.", "--seed 0")
        devices.resolve(torch.device("cpu"), self.precision)
        if self.size_px % 2 ** len(self.widths):
            raise errors.UsageError(f"A scene of {self.size_px} px does not fit the network.")


WARMUP = 0.05


@dataclasses.dataclass(slots=True)
class _State:
    """What a checkpoint holds."""

    module: unet.UNet
    optimizer: torch.optim.AdamW
    step: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)


def train(
    found: Sequence[pairs.Pair],
    out: str | os.PathLike[str],
    config: TrainConfig,
    *,
    device: str = "auto",
    workers: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Train a network and write it as a `segmenter` artifact.

    A killed run leaves a checkpoint; the same call goes on from it.

    Args:
        found: pairs at `config.mpp`.
        out: the safetensors file to write.
        config: how it learns.
        device: see `device.pick`.
        workers: threads that make scenes; 0 means one per core.
        overwrite: replace a result made with other pairs or settings.
        progress: told (steps done, steps in total).

    Returns:
        The record; `metrics` holds the mean loss of the last tenth and the Dice on fresh scenes.

    Raises:
        errors.InputError: no pair, or none with tissue.
        errors.OutputClash: `out` holds something else.
    """
    found = sorted(found, key=lambda pair: pair.name)
    header = _header(found, config)
    if record := artifacts.finished(out, header, overwrite=overwrite):
        return record
    parts = artifacts.Parts(out, header)
    place = devices.pick(device)
    state = _start(config, place)
    _resume(state, parts.folder)
    for batch in _batches(found, config, state.step, workers):
        state.losses.append(_step(state, batch, config, place))
        state.step += 1
        if state.step % CHECKPOINT_EVERY == 0 and state.step < config.steps:
            _keep(state, parts.folder)
        progress(state.step, config.steps)
    metrics = _measure(state, found, config, header.id)
    record = unet.save(out, state.module, dataclasses.replace(header, metrics=metrics))
    parts.discard()
    return record


def check(
    out: str | os.PathLike[str], config: TrainConfig, device: str, *, overwrite: bool = False
) -> None:
    """Refuse an output that is surely something else, and a device that is not there.

    Raises:
        errors.OutputClash: `out` holds no artifact, no segmenter, or one of other settings.
        errors.Unwritable: nothing can be written there.
        errors.UsageError: no such device.
    """
    devices.pick(device)
    disk.check_place(out)
    old = artifacts.check_replaceable(out)
    if old is None or overwrite:
        return
    asked = _settings(config)
    known = {name: old.settings.get(name) for name in asked}
    if old.kind != "segmenter" or known != asked:
        new = dataclasses.replace(old, kind="segmenter", settings=asked)
        told = artifacts.differences(dataclasses.replace(old, settings=known), new)
        raise errors.OutputClash(
            f"{out} was made with {told}.", "another -o, or --overwrite to replace it"
        )


def plan(
    found: Sequence[pairs.Pair],
    out: str | os.PathLike[str],
    config: TrainConfig,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """What `train` would do; arguments and errors as there."""
    header = _header(sorted(found, key=lambda pair: pair.name), config)
    finished = artifacts.finished(out, header, overwrite=overwrite) is not None
    return {
        "pairs": len(found),
        "steps": 0 if finished else config.steps,
        "scenes": 0 if finished else config.steps * config.batch,
        "writes": os.path.abspath(out),
    }


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "widths": list(config.widths)}


def _header(found: Sequence[pairs.Pair], config: TrainConfig) -> artifacts.Header:
    if not any(pair.mask.any() for pair in found):
        raise errors.InputError(
            "There is no annotated tissue to learn from.",
            "--annotations DIR, with DIR/NAME.geojson or DIR/NAME.png for each slide or thumbnail",
        )
    return artifacts.Header(
        kind="segmenter",
        parents=(f"pairs:{pairs.digest(found)}",),
        settings={**_settings(config), "pairs": [pair.name for pair in found]},
    )


def loss(logits_B1HW: torch.Tensor, truth_B1HW: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus one minus soft Dice over the batch."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits_B1HW, truth_B1HW)
    found = torch.sigmoid(logits_B1HW)
    overlap = 2 * (found * truth_B1HW).sum() + 1
    return entropy + 1 - overlap / (found.sum() + truth_B1HW.sum() + 1)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warmup, then a cosine down to 0."""
    warmup = max(1, round(WARMUP * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.steps - warmup)))


def _start(config: TrainConfig, place: torch.device) -> _State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = unet.UNet(config.widths).to(place).train()
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    return _State(module, optimizer)


def _step(
    state: _State,
    batch: tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]],
    config: TrainConfig,
    place: torch.device,
) -> float:
    rgb_BHWC, mask_BHW = (torch.from_numpy(part).to(place) for part in batch)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    with devices.autocast(place, config.precision):
        logits_B1HW = state.module(unet.normalised(rgb_BHWC.permute(0, 3, 1, 2)))
    value = loss(logits_B1HW.float(), mask_BHW[:, None].float())
    state.optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.module.parameters(), 1.0)
    state.optimizer.step()
    return float(value.detach())


def _batches(
    found: Sequence[pairs.Pair], config: TrainConfig, first: int, workers: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Batches from step `first` on: scenes `step * batch` and so forth, made ahead by threads."""

    def make(index: int) -> compose.Scene:
        return compose.scene(
            found, compose.Recipe(), config.seed, index, size_px=config.size_px, mpp=config.mpp
        )

    waiting: collections.deque[list[futures.Future[compose.Scene]]] = collections.deque()
    with futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            for step in range(first, config.steps + AHEAD):
                if step < config.steps:
                    numbers = range(step * config.batch, (step + 1) * config.batch)
                    waiting.append([pool.submit(make, number) for number in numbers])
                if waiting and (len(waiting) > AHEAD or step >= config.steps):
                    scenes = [future.result() for future in waiting.popleft()]
                    yield np.stack([s.rgb for s in scenes]), np.stack([s.mask for s in scenes])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _measure(
    state: _State, found: Sequence[pairs.Pair], config: TrainConfig, name: str
) -> dict[str, float]:
    segmenter = unet.Segmenter(state.module.eval(), config.mpp, name)
    results = []
    for index in range(FRESH):
        scene = compose.scene(
            found,
            compose.Recipe(),
            config.seed,
            config.steps * config.batch + index,
            size_px=config.size_px,
            mpp=config.mpp,
        )
        mask = segmenter.probability(scene.rgb) > 0.5
        results.append(scores.compare(mask, scene.mask, config.mpp))
    last = state.losses[-max(1, len(state.losses) // 10) :]
    return {
        "loss": float(np.mean(last)) if last else math.nan,
        "fresh_dice": scores.total(results).dice,
    }


def _keep(state: _State, folder: Path) -> None:
    """Write a checkpoint: weights, moments of the optimiser, step."""
    tensors = {f"module.{name}": value for name, value in state.module.state_dict().items()}
    for name, parameter in state.module.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"step": str(state.step), "losses": json.dumps(state.losses)}
    with disk.atomic(folder / "checkpoint.safetensors") as temporary:
        safetensors_torch.save_file(tensors, temporary, metadata)


def _resume(state: _State, folder: Path) -> None:
    """Take up a checkpoint if there is one.

    Raises:
        errors.InputError: it is damaged.
    """
    file = folder / "checkpoint.safetensors"
    if not file.exists():
        return
    try:
        _take_up(state, file)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise errors.InputError(
            f"{file} is no checkpoint of this training, or it is cut short.",
            f"rm -r {folder} to begin anew",
        ) from error


def _take_up(state: _State, file: Path) -> None:
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    module = {n.removeprefix("module."): v for n, v in tensors.items() if n.startswith("module.")}
    state.module.load_state_dict(module)
    for name, parameter in state.module.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors[f"optimizer.{key}.{name}"]
            place = "cpu" if key == "step" else parameter.device
            state.optimizer.state[parameter][key] = value.to(place)
    state.step, state.losses = int(metadata["step"]), json.loads(metadata["losses"])
