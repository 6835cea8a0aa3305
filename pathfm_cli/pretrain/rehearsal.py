"""A run tried out on this machine: how long it will take, for what, and the memory it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pathfm_cli import config, errors
from pathfm_cli.data import estimate
from pathfm_cli.pretrain import launch, recipe, run, share, trial

MODULE = "pathfm_cli.pretrain.trial"
GPU_GB = (16, 24, 40, 80)
"""Memory of usual GPUs."""
MEMORY_SHARE = 0.9
"""Of a GPU's memory, what a run may count on."""


def rehearse(
    source: str | os.PathLike[str],
    settings: recipe.Recipe,
    size: run.Size,
    machine: run.Machine,
    patches: int,
    seconds: float,
) -> dict[str, Any]:
    """Try a run out in a process that is set up as a training process is; writes nothing.

    One process is tried; see `rates` for what it means for all.

    Args:
        source: a `tissue` or `patches` artifact.
        settings: the recipe.
        size: how the batch is shared.
        machine: processes and devices.
        patches: how many are to come.
        seconds: how long it may take, about; two steps are taken in any case.

    Returns:
        Names and values for a person: the rates, the duration, what limits it, the memory of a
        process, and how many patches fit on usual GPUs.

    Raises:
        errors.PathfmError: what the process raised, or that it died.
    """
    found = _try(source, settings, size, machine, seconds)
    step, at_once = found.step, size.share.at_once
    known = rates(found, size.share, machine.nodes.count, os.cpu_count() or 1)
    here = {} if found.device_bytes is None else {"memory_gb_here": _gb(found.device_bytes)}
    return {
        **known.outlook(patches),
        "memory_gb_per_process": _gb(step.state_bytes + step.patch_bytes * at_once),
        "memory_gb_of_states": _gb(step.state_bytes),
        **here,
        "patches_at_once_by_gpu_gb": {str(gpu): fitting(step, gpu) for gpu in GPU_GB},
    }


def rates(found: trial.Trial, split: share.Share, nodes: int, cores: int) -> estimate.Rates:
    """What a trial of one process means for all of a run.

    CUDA processes add up. On a CPU a process was tried with its share of the threads: processes add
    up as long as there is a core for each, and share the cores for reading, whose time therefore
    adds to that of the network.

    Args:
        found: the trial.
        split: how the batch is shared over the processes of all machines.
        nodes: machines, each as this one.
        cores: of this machine.
    """
    cuda = found.device_bytes is not None
    local = max(1, split.processes // nodes)
    return estimate.Rates(
        read_per_s=found.read_per_s * (split.processes if cuda else nodes),
        compute_per_s=split.at_once
        / found.step.seconds
        * nodes
        * (local if cuda else min(local, cores)),
        remote=found.remote,
        seconds=found.seconds,
        one_after_the_other=not cuda and not found.remote,
    )


def fitting(step: trial.Step, gpu_gb: int) -> int:
    """Patches that a GPU of so many GB takes at once; 0: not even the states fit."""
    room = MEMORY_SHARE * gpu_gb * 1e9 - step.state_bytes
    return max(0, int(room / max(1.0, step.patch_bytes)))


def _gb(count: float) -> float:
    return round(count / 1e9, 2)


def _try(
    source: str | os.PathLike[str],
    settings: recipe.Recipe,
    size: run.Size,
    machine: run.Machine,
    seconds: float,
) -> trial.Trial:
    local = max(1, size.share.processes // machine.nodes.count)
    with tempfile.TemporaryDirectory(prefix="pathfm-") as scratch:
        resolved, file = Path(scratch) / "config.toml", Path(scratch) / "error.json"
        resolved.write_text(config.dumps(settings), encoding="utf-8")
        options: dict[str, Any] = {
            "recipe": resolved,
            "device": machine.device,
            "workers": run.readers(machine, local),
            "at-once": size.share.at_once,
            "seconds": seconds,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        with launch.environment(local, file):
            done = subprocess.run(
                [sys.executable, "-m", MODULE, os.fspath(source), *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        if done.returncode:
            raise launch.left(file) or errors.PathfmError(
                f"The process that tried the run out ended with exit code {done.returncode}.",
                "--measure-s 0 tells what needs no trial",
            )
    return trial.loads(done.stdout.splitlines()[-1])
