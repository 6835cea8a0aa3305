"""Everything needed to go on, as safetensors: `checkpoints/step-NNNNNN/`.

A checkpoint is written under another name and renamed when it is complete, so every folder called
`step-*` is whole. It holds no random state: all randomness is a function of (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from pathfm_cli import errors
from pathfm_cli.pretrain import dino, folder, shard

SCHEMA = "pathfm.resume/2"
_MODULES = ("student", "teacher", "centre", "guard")


def save(home: Path, step: int, method: dino.Dino, identity: str) -> Path:
    """Write the checkpoint after `step` steps, unless it is there, and drop the oldest.

    `train.keep_checkpoints` are kept; 0 keeps all. All ranks must ask, so that a student that they
    share comes together; only the first writes. What is written does not depend on their number.

    Args:
        home: `checkpoints` of the run.
        step: steps taken.
        method: what is trained.
        identity: id of the run; only the same run may go on from here.

    Raises:
        errors.PathfmError: the disk is full, or fails.
    """
    final = home / f"step-{step:06d}"
    contents = _gathered(method, kept=method.here.leads)
    if not method.here.leads or final.exists():
        return final
    temporary = home / f".step-{step:06d}.tmp-{os.getpid()}"
    try:
        _write(temporary, step, contents, identity)
        os.replace(temporary, final)
        _fsync(home)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise errors.PathfmError(
            f"The checkpoint of step {step} cannot be written to {home}: {reason}.",
            "make room; the same command goes on from the checkpoint before",
        ) from error
    kept = method.settings.train.keep_checkpoints
    for old in folder.checkpoints(home)[:-kept] if kept else []:
        going = home / f".{old.name}.tmp-{os.getpid()}"
        os.replace(old, going)
        shutil.rmtree(going)
    return final


def _write(
    folder_: Path, step: int, contents: Mapping[str, dict[str, torch.Tensor]], identity: str
) -> None:
    folder_.mkdir(parents=True)
    for name, tensors in contents.items():
        safetensors_torch.save_file(tensors, folder_ / f"{name}.safetensors")
    state = {"schema": SCHEMA, "id": identity, "step": step}
    (folder_ / "state.json").write_text(json.dumps(state) + "\n")
    for file in folder_.iterdir():
        _fsync(file)


def restore(home: Path, method: dino.Dino, identity: str) -> int:
    """Load the newest checkpoint into `method`; return the steps taken, 0 if there is none.

    Raises:
        errors.InputError: it belongs to another run, or is damaged.
    """
    _sweep(home)
    if not (found := folder.checkpoints(home)):
        return 0
    source = found[-1]
    try:
        state = json.loads((source / "state.json").read_text())
        if state["schema"] != SCHEMA:
            raise errors.InputError(
                f"{source} was written by another version of pathfm ({state['schema']}).",
                "go on with that version, or --overwrite",
            )
        if state["id"] != identity:
            raise errors.InputError(f"{source} belongs to run {state['id']}.", "use another -o")
        for name in _MODULES:
            module = getattr(method, name)
            tensors = safetensors_torch.load_file(source / f"{name}.safetensors")
            own = module.state_dict()
            # A name that is not its own is left for `load_state_dict` to refuse.
            shares = {n: shard.like(own[n], t) if n in own else t for n, t in tensors.items()}
            module.load_state_dict(shares)
        _set_moments(method, safetensors_torch.load_file(source / "optimiser.safetensors"))
        return int(state["step"])
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise errors.InputError(
            f"The checkpoint {source} is damaged: {error}.", f"rm -r {source}, then run again"
        ) from error


def _gathered(method: dino.Dino, *, kept: bool) -> dict[str, dict[str, torch.Tensor]]:
    """Whole tensors of every file, by name; none unless they are `kept`, but all ranks ask."""
    named = {name: getattr(method, name).state_dict() for name in _MODULES}
    named["optimiser"] = _moments(method)
    contents: dict[str, dict[str, torch.Tensor]] = {name: {} for name in named} if kept else {}
    for name, tensors in named.items():
        for key, tensor in tensors.items():
            whole = shard.whole(tensor.detach())
            if kept:
                contents[name][key] = whole.contiguous()
    return contents


def _moments(method: dino.Dino) -> dict[str, torch.Tensor]:
    """AdamW's state by parameter name; frozen parameters have none yet."""
    return {
        f"{key}.{name}": value
        for name, parameter in method.student.named_parameters()
        for key, value in method.optimiser.state.get(parameter, {}).items()
    }


def _set_moments(method: dino.Dino, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(method.student.named_parameters())
    for full, tensor in tensors.items():
        key, _, name = full.partition(".")
        parameter = parameters[name]
        method.optimiser.state[parameter][key] = shard.like(parameter, tensor)


def _sweep(home: Path) -> None:
    """Remove what a killed process left; nobody else writes here, see `folder.lock`."""
    for stale in home.glob(".step-*.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
