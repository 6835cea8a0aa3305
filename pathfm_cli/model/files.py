"""Files of weights, read without ever running code: safetensors, or torch's restricted loader."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, errors

SUFFIXES = (".safetensors", ".pth", ".pt", ".torch", ".bin", ".ckpt")
_HARMLESS: list[Any] = [argparse.Namespace]
"""Classes beside tensors that published checkpoints hold: DINO's and iBOT's `args`."""
_GLOBAL = re.compile(r"unsupported global:? (?:GLOBAL )?(\S+)", re.IGNORECASE)
"""How torch names the class or function that a file would have it call."""
MAX_ARGUMENT = 1 << 16
"""Largest number that a file may pass to an architecture."""
_RESERVED = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir"),
)
"""Arguments by which timm reads or fetches other files."""


def is_exported(path: Path) -> bool:
    """Whether `path` is an encoder that pathfm wrote: safetensors with a checkpoint's header."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        return artifacts.read_header(path).kind == "checkpoint"
    except errors.InputError:
        return False


def read(path: Path) -> Any:
    """Read a file of weights to the CPU.

    Returns:
        Tensors by name for safetensors; whatever nested mapping the file holds otherwise.

    Raises:
        errors.InputError: damaged, or not readable without running code from the file.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors_torch.load_file(path)
        _refuse_inflated(path)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except errors.InputError:
        raise
    except safetensors.SafetensorError as error:
        raise errors.InputError(f"{path} is damaged: {errors.first_line(error)}.") from error
    except Exception as error:  # the loader meets hostile bytes and raises whatever they provoke
        raise _refusal(path, error) from error


def check_arguments(arch: str, kwargs: Mapping[str, Any], tensors: int, path: Path) -> None:
    """Refuse a `model.json` that would make timm read or fetch other files, or build a giant.

    Args:
        arch: the timm name that it states.
        kwargs: the arguments that it states.
        tensors: how many the weights file holds; no network of it has more blocks.
        path: of the description, for messages.

    Raises:
        errors.InputError: it does.
    """
    bad = next((name for name in kwargs if name in _RESERVED), None)
    if bad is None and ":" in arch:
        bad = f"the architecture to {arch}"
    if bad is None:
        limits = {"depth": tensors, "depths": tensors}
        bad = next(
            (
                f"{name} to {value}"
                for name, value in kwargs.items()
                if not _bounded(value, limits.get(name, MAX_ARGUMENT))
            ),
            None,
        )
    if bad is not None:
        raise errors.InputError(
            f"{path} is not an encoder's description: it sets {bad[:200]}.",
            "pathfm writes model.json together with the weights: copy both",
        )


def _bounded(value: Any, most: int) -> bool:
    """Whether all numbers of a value are from -`most` to `most`; also a NaN is not."""
    if isinstance(value, list | tuple):
        return len(value) <= MAX_ARGUMENT and all(_bounded(item, most) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return not isinstance(value, dict)
    return -most <= value <= most


def _refuse_inflated(path: Path) -> None:
    """Refuse a bomb: torch stores tensors uncompressed, so a file unpacks to less than its size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise errors.InputError(f"{path} is compressed ({unpacked} bytes unpacked): not by torch.")


def _refusal(path: Path, error: Exception) -> errors.InputError:
    wanted = _GLOBAL.search(str(error))
    if wanted or "Weights only load failed" in str(error):
        needs = wanted.group(1) if wanted else "code that the file brings"
        return errors.InputError(
            f"{path} cannot be read without running {needs}; pathfm never does that.",
            "where you trust the file, save its state dict as safetensors "
            "(safetensors.torch.save_file), and name that",
        )
    return errors.InputError(f"{path} is damaged: {errors.first_line(error)}.")
