"""Where and in which arithmetic a network runs."""

from __future__ import annotations

import contextlib

import torch

from pathfm_cli import errors

PRECISIONS = ("auto", "fp32", "bf16")


def pick(name: str) -> torch.device:
    """Return the device called `name`.

    Args:
        name: auto, cpu, cuda, cuda:N or mps. auto is the first CUDA device, else MPS, else the CPU.

    Raises:
        errors.UsageError: no such kind of device, or this machine has none.
    """
    if name == "auto":
        return torch.device(_best())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise errors.UsageError(f"There is no device {name!r}.", _CHOICES) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise errors.UsageError(f"There is no device {name!r}.", _CHOICES)
    if (device.index or 0) >= _count(device.type):
        raise errors.UsageError(f"This machine has no device {name}.", _CHOICES)
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context for a forward pass in `precision` on `device`.

    Args:
        device: where the pass runs.
        precision: fp32, bf16, or auto: bf16 on CUDA, fp32 elsewhere.

    Raises:
        errors.UsageError: another precision.
    """
    if resolve(device, precision) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def resolve(device: torch.device, precision: str) -> str:
    """Return what `precision` means on `device`: fp32 or bf16.

    Raises:
        errors.UsageError: not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise errors.UsageError(
            f"There is no precision {precision!r}.", f"--precision {' | '.join(PRECISIONS)}"
        )
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


_CHOICES = "--device auto, cpu, cuda, cuda:N or mps; `pathfm doctor` lists what is here"


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count()
    return int(torch.backends.mps.is_available()) if kind == "mps" else 1
