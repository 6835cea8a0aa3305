"""A trained encoder as two files that plain timm reads: `teacher.safetensors` and `model.json`.

info = json.load(open("model.json"))
model = timm.create_model(info["arch"], num_classes=0, **info["kwargs"])
model.load_state_dict(safetensors.torch.load_file("teacher.safetensors"))
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors_torch
from torch import nn

from pathfm_cli import artifacts, disk, errors

WEIGHTS = "teacher.safetensors"
MODEL = "model.json"
INPUTS = ("rgb", "density")
EMBEDDINGS = ("cls", "avg", "cls+mean")
"""What a file may say of its embedding."""

MAX_INFO_CHARACTERS = 1 << 20
MAX_IMAGE_PX = 1 << 11
"""Largest side of an input that a file may ask for: eight images take 400 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Info:
    """How to rebuild an encoder and what to feed it: the contents of `model.json`."""

    arch: str
    """timm name."""
    kwargs: Mapping[str, Any]
    """Arguments for `timm.create_model` beside `num_classes=0`."""
    image_size_px: int
    """Side of the images it was trained on."""
    mean: tuple[float, float, float]
    """Channel mean that is subtracted, for pixels in 0..1."""
    std: tuple[float, float, float]
    """Channel deviation that is divided by."""
    embedding: str = "cls"
    """Which output is the embedding."""
    prefix_tokens: int = 1
    """Class and register tokens before the patch tokens."""
    input: str = "rgb"
    """What the encoder sees of the pixels: `rgb`, or `density`, see `density.standardise`."""
    recipe: str = ""
    """Name of the recipe that trained it."""
    step: int = 0
    """Training steps taken."""


def export(
    folder: str | Path, module: nn.Module, info: Info, header: artifacts.Header
) -> dict[str, Any]:
    """Write `model.json`, then `teacher.safetensors`, each atomically; return the record.

    The weights appear last, so their presence means that the export is complete.

    Args:
        folder: run folder; made if it is not there.
        module: the encoder; its parameters and buffers are written as float32, under timm's names.
        info: what `model.json` says.
        header: of kind checkpoint.
    """
    folder = Path(folder)
    with disk.atomic(folder / MODEL) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n")
    with disk.atomic(folder / WEIGHTS) as temporary:
        metadata = {"pathfm": header.dumps()}
        safetensors_torch.save_file(_tensors(module), temporary, metadata=metadata)
    return header.record(folder / WEIGHTS)


def read_info(path: str | Path) -> Info:
    """Read the `model.json` of a run folder, or the one beside an exported weights file.

    Raises:
        errors.InputError: it is missing or damaged.
    """
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / MODEL
    try:
        with file.open(encoding="utf-8") as opened:
            return _parse(json.loads(opened.read(MAX_INFO_CHARACTERS)))
    except FileNotFoundError as error:
        raise errors.InputError(
            f"{file} is missing.", "name the model: --arch TIMM_NAME"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise errors.InputError(f"{file} is damaged: {reason}.", "run pretrain again") from error


def _parse(document: Mapping[str, Any]) -> Info:
    mean, std = ([float(value) for value in document[name]] for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError("mean and std have three channels")
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ValueError("mean and std are finite, std above 0")
    if not isinstance(document["arch"], str):
        raise TypeError("arch is no text")
    size_px = int(document["image_size_px"])
    if not 0 < size_px <= MAX_IMAGE_PX:
        raise ValueError(f"image_size_px is {size_px}")
    return Info(
        arch=document["arch"],
        kwargs=dict(document["kwargs"]),
        image_size_px=size_px,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        embedding=_one_of("embedding", document["embedding"], EMBEDDINGS),
        prefix_tokens=int(document["prefix_tokens"]),
        input=_one_of("input", document.get("input", "rgb"), INPUTS),
        recipe=str(document["recipe"]),
        step=int(document["step"]),
    )


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, none of {', '.join(known)}")
    return str(value)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in module.state_dict().items()
    }
