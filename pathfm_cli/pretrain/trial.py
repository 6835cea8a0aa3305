"""One process that reads and steps for some seconds as a run would, and says how that went."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathfm_cli import errors
from pathfm_cli.data import cohort, estimate, stream
from pathfm_cli.model import device as devices
from pathfm_cli.pretrain import augment, dino, launch, origin, place, recipe, sections, stop, train

READ_BATCH = 16
READ_SHARE = 0.3
"""Share of the time that reading is measured; the rest is for steps."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What steps of one process took.

    Attributes:
        seconds: of a forward and backward pass over all patches it takes at once.
        state_bytes: weights, gradients, moments, and what does not grow with the patches.
        patch_bytes: of activations, per patch.
    """

    seconds: float
    state_bytes: int
    patch_bytes: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a process found.

    Attributes:
        read_per_s: patches it reads and decodes in a second.
        step: of the network.
        remote: whether slides lie behind a network.
        device_bytes: memory of its CUDA device, else None.
        seconds: how long it took.
    """

    read_per_s: float
    step: Step
    remote: bool
    device_bytes: int | None
    seconds: float

    def dumps(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))


def loads(text: str) -> Trial:
    """The inverse of `Trial.dumps`."""
    values = json.loads(text)
    return Trial(**{**values, "step": Step(**values["step"])})


def trial(
    source: Path,
    settings: recipe.Recipe,
    *,
    device: str,
    workers: int,
    at_once: int,
    seconds: float,
) -> Trial:
    """Read, then step on noise; writes nothing, and takes any first weights: they are as fast.

    Args:
        source: a `tissue` or `patches` artifact.
        settings: the recipe.
        device: as `device.pick`.
        workers: processes that read; 0: threads.
        at_once: patches of one forward pass in the run.
        seconds: how long it may take, about; two steps are taken in any case.
    """
    began = time.perf_counter()
    read_per_s = estimate.rate(_pixels(source, settings, workers), READ_SHARE * seconds)
    here = place.Place(0, 1, devices.pick(device))
    measure = _cuda_step if here.device.type == "cuda" else _cpu_step
    step = measure(settings, here, at_once, (1 - READ_SHARE) * seconds)
    return Trial(
        read_per_s=read_per_s,
        step=step,
        remote=cohort.open_cohort(source).remote,
        device_bytes=_device_bytes(here.device),
        seconds=time.perf_counter() - began,
    )


def _pixels(source: Path, settings: recipe.Recipe, workers: int) -> Iterator[torch.Tensor]:
    batches = stream.batches(
        source,
        settings.data,
        settings.train.seed,
        batch_size=READ_BATCH,
        first_step=0,
        steps=1 << 30,
        workers=workers,
        patches_per_window=settings.train.patches_per_window,
        policy=settings.train.level,
        idct=settings.train.idct,
    )
    return (batch.pixels for batch in batches)


class _Stepper:
    """Takes steps on noise."""

    def __init__(self, settings: recipe.Recipe, here: place.Place) -> None:
        fresh = dataclasses.replace(settings.model, init=origin.SCRATCH)
        self._settings = dataclasses.replace(settings, model=fresh, start=sections.Start())
        self._device = here.device
        self.method = train.begin(self._settings, here)

    def take(self, count: int) -> float:
        """Take a step of `count` patches; the seconds it took."""
        began = time.perf_counter()
        side = self._settings.data.size_px
        pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
        views = augment.parts(self._settings, pixels.to(self._device), np.arange(count), 1)
        self.method.step_in_parts(0, views, 1, measure=False)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began

    def state_bytes(self) -> int:
        """Weights of student and teacher, gradients and the optimiser's moments."""
        return _state_bytes(self.method)


def _cpu_step(settings: recipe.Recipe, here: place.Place, at_once: int, seconds: float) -> Step:
    """Steps of ever more patches while there is time; the rest is extrapolated."""
    stepper, began = _Stepper(settings, here), time.perf_counter()
    # The losses of DINOv2 compare the images of a step.
    few = min(at_once, 2 if settings.method == "dinov2" else 1)
    saved: dict[int, int] = {}
    times: dict[int, float] = {}

    def take(count: int) -> None:
        times[count] = min(stepper.take(count), times.get(count, np.inf))

    for count in dict.fromkeys((few, min(2 * few, at_once))):
        saved[count] = _saved(stepper.method, lambda count=count: take(count))  # type: ignore[misc]
    left = seconds - (time.perf_counter() - began)
    largest = max(times)
    while 2 * largest <= at_once and 4 * times[largest] < left:
        largest *= 2
        take(largest)
        left = seconds - (time.perf_counter() - began)
    while times[largest] < seconds - (time.perf_counter() - began):
        take(largest)
        take(max(few, largest // 2))
    least, most = min(saved), max(saved)
    # What does not grow with the patches, such as prototypes brought to length 1, is no patch's.
    each = (saved[most] - saved[least]) / (most - least) if most > least else saved[least] / least
    fixed_bytes = saved[least] - round(each * least)
    return Step(
        seconds=extrapolated(times, at_once),
        state_bytes=stepper.state_bytes() + fixed_bytes,
        patch_bytes=each,
    )


def extrapolated(times: Mapping[int, float], count: int) -> float:
    """Seconds of a step of `count` patches, from those of fewer.

    What a step takes whatever its size (the optimiser, the mean teacher) is told from the two
    largest sizes; at most half of the larger one's time is taken for it, since both are noisy.
    """
    largest = max(times)
    half = max((size for size in times if size < largest), default=largest)
    each = times[largest] / largest
    if half < largest:
        slope = (times[largest] - times[half]) / (largest - half)
        each = min(each, max(each / 2, slope))
    return times[largest] + each * (count - largest)


def _cuda_step(settings: recipe.Recipe, here: place.Place, at_once: int, seconds: float) -> Step:
    """Steps of all patches, or of as many as there is memory for."""
    stepper, count = _Stepper(settings, here), at_once
    while True:
        try:
            stepper.take(count)  # warms up, and fills the optimiser's moments
            torch.cuda.reset_peak_memory_stats(here.device)
            took = [stepper.take(count)]
            break
        except torch.cuda.OutOfMemoryError as error:
            if count < 4:
                raise errors.PathfmError(
                    "The device has not enough memory for a step of a few patches.",
                    "a smaller encoder, --device cpu, or --measure-s 0",
                ) from error
            count //= 2
            torch.cuda.empty_cache()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        took.append(stepper.take(count))
    whole, states = torch.cuda.max_memory_allocated(here.device), stepper.state_bytes()
    return Step(
        seconds=min(took) * at_once / count,
        state_bytes=states,
        patch_bytes=(whole - states) / count,
    )


def _device_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def _saved(method: dino.Dino, take: Callable[[], None]) -> int:
    """Take a step; return the bytes of all that its way back needed, weights aside."""
    saved: list[int] = []
    with _counting(saved, method):
        take()
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
    tensors = [*method.student.parameters(), *method.teacher.parameters()]
    gradients = [p.grad for p in method.student.parameters() if p.grad is not None]
    moments = [
        value
        for state in method.optimiser.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.nbytes for tensor in (*tensors, *gradients, *moments))


def main(arguments: Sequence[str]) -> int:
    """Try a run out; one line of JSON on stdout. Returns the exit code."""
    options = _parse(arguments)
    stop.with_launcher()
    try:
        found = trial(
            options.source,
            recipe.load(options.recipe),
            device=options.device,
            workers=options.workers,
            at_once=options.at_once,
            seconds=options.seconds,
        )
    except errors.PathfmError as error:
        launch.leave_error(error)
        return error.exit_code
    sys.stdout.write(found.dumps() + "\n")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pathfm_cli.pretrain.trial", description=__doc__)
    parser.add_argument("source", type=Path, help="a tissue or patches artifact")
    parser.add_argument("--recipe", required=True, help="the resolved recipe, a TOML file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--at-once", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    launch.leave(main(sys.argv[1:]))
