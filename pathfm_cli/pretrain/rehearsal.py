"""A run tried out on this machine: how fast it reads and steps, and the memory it takes."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pathfm_cli.data import cohort, draw, estimate, fixed, stream
from pathfm_cli.model import device as devices
from pathfm_cli.pretrain import augment, dino, origin, place, recipe, run, sections, train

READ_BATCH = 16
READ_SHARE = 0.4
"""Share of the time that reading is measured; the rest is for steps."""
CPU_PATCHES = 2
"""Patches of a step that is tried on a CPU, and then twice as many: its time grows with them."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What steps took: patches a second, and bytes: of states, and of activations a patch."""

    patches_per_s: float
    state_bytes: int
    patch_bytes: float


def rehearse(
    source: str | os.PathLike[str],
    settings: recipe.Recipe,
    size: run.Size,
    device: str,
    patches: int,
    seconds: float,
) -> dict[str, Any]:
    """Try a run out; writes nothing, and asks nobody for first weights: any are as fast.

    Reading is tried in one thread. A run on CUDA has reading processes, and is faster by these.

    Args:
        source: a `tissue` or `patches` artifact.
        settings: the recipe.
        size: how the batch is shared.
        device: as `device.pick`; one process is tried, and the processes are taken to add up.
        patches: how many are to come.
        seconds: how long it may take, about; at least one step is taken.

    Returns:
        Names and values for a person: bytes and requests of all patches, the rates, the duration,
        what limits it, and the memory of a process.
    """
    began = time.perf_counter()
    opened = cohort.open_cohort(source, policy=settings.train.level, idct=settings.train.idct)
    each = estimate.cost(opened, itertools.islice(_drawn(opened, settings), estimate.LOOKED_UP))
    read_per_s = estimate.rate(_pixels(source, settings), READ_SHARE * seconds)
    step = _steps(settings, size, device, (1 - READ_SHARE) * seconds)
    rates = estimate.Rates(
        read_per_s=read_per_s,
        compute_per_s=step.patches_per_s * size.share.processes,
        remote=opened.remote,
        seconds=time.perf_counter() - began,
    )
    memory = step.state_bytes + step.patch_bytes * size.share.at_once
    return {
        "bytes": round(each.bytes * patches),
        "requests": round(each.requests * patches),
        **rates.outlook(patches),
        "memory_gb_per_process": round(memory / 1e9, 2),
        "memory_gb_of_states": round(step.state_bytes / 1e9, 2),
    }


def _drawn(opened: cohort.Cohort, settings: recipe.Recipe) -> Iterator[draw.Patch]:
    known: draw.Source
    if opened.table.header.kind == "tissue":
        known = draw.Sampler(opened.table, settings.data, settings.train.seed)
    else:
        known = fixed.Fixed(opened.table, settings.train.seed, settings.data)
    return map(known.draw, itertools.count())


def _pixels(source: str | os.PathLike[str], settings: recipe.Recipe) -> Iterator[torch.Tensor]:
    batches = stream.batches(
        source,
        settings.data,
        settings.train.seed,
        batch_size=READ_BATCH,
        first_step=0,
        steps=1 << 30,
        patches_per_window=settings.train.patches_per_window,
        policy=settings.train.level,
        idct=settings.train.idct,
    )
    return (batch.pixels for batch in batches)


def _steps(settings: recipe.Recipe, size: run.Size, device: str, seconds: float) -> Step:
    """Take steps on noise."""
    here = place.Place(0, 1, devices.pick(device))
    cuda = here.device.type == "cuda"
    count = size.share.at_once if cuda else min(CPU_PATCHES, size.share.at_once)
    fresh = dataclasses.replace(settings.model, init=origin.SCRATCH)
    settings = dataclasses.replace(settings, model=fresh, start=sections.Start())
    method = train.begin(settings, here)
    side, most = settings.data.size_px, count if cuda else 2 * count
    pixels = torch.randint(0, 256, (most, side, side, 3), dtype=torch.uint8).to(here.device)

    def take(numbers: range) -> None:
        views = augment.parts(settings, pixels[: len(numbers)], np.asarray(numbers), 1)
        method.step_in_parts(0, views, 1, measure=False)
        if cuda:
            torch.cuda.synchronize(here.device)

    few, more = _saved(method, take, count), 0
    if not cuda and size.share.at_once >= 2 * count:
        more = _saved(method, take, 2 * count)
    pieces = (range(count) for _ in itertools.count())
    patches_per_s = estimate.rate(pieces, seconds, take)
    state = _state_bytes(method)
    if cuda:
        whole = torch.cuda.max_memory_allocated(here.device)
        each = (whole - state) / count
        return Step(patches_per_s=patches_per_s, state_bytes=state, patch_bytes=each)
    # What does not grow with the patches, such as prototypes brought to length 1, is no patch's.
    each = (more - few) / count if more else few / count
    fixed_bytes = few - round(each * count)
    return Step(patches_per_s=patches_per_s, state_bytes=state + fixed_bytes, patch_bytes=each)


def _saved(method: dino.Dino, take: Callable[[range], None], count: int) -> int:
    """Take a step; return the bytes of all that its way back needed, weights aside."""
    saved: list[int] = []
    with _counting(saved, method):
        take(range(count))
    return sum(saved)


def _counting(saved: list[int], method: dino.Dino) -> Any:
    """Note the bytes of every tensor that the way back will need, each storage once."""
    weights = (*method.student.parameters(), *method.teacher.parameters())
    seen = {weight.untyped_storage().data_ptr() for weight in weights}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            saved.append(storage.nbytes())
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


def _state_bytes(method: dino.Dino) -> int:
    """Weights of student and teacher, gradients and the optimiser's moments."""
    tensors = [*method.student.parameters(), *method.teacher.parameters()]
    gradients = [p.grad for p in method.student.parameters() if p.grad is not None]
    moments = [
        value
        for state in method.optimiser.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.nbytes for tensor in (*tensors, *gradients, *moments))
