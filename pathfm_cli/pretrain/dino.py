"""The method DINO: what one step does to student, teacher and centre.

Source: facebookresearch/dino, `main_dino.train_one_epoch`; Caron et al. 2021, algorithm 1.
Legend: V views, G global views, B batch, N = V * B, K prototypes, L residual branches.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pathfm_cli.data import draw
from pathfm_cli.model import depth, vit
from pathfm_cli.model import device as devices
from pathfm_cli.pretrain import guard, layers, networks, optim, origin, place, recipe, schedule
from pathfm_cli.pretrain.losses import dino

DROP_PURPOSE = 102
"""Key of the stream of random numbers that stochastic depth is drawn from."""
SEED_PURPOSE = 103
"""Key of the stream that seeds torch, for layers that draw by themselves."""

_GLOBAL_VIEWS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a step measured, as scalars on the device, and what was set for it."""

    loss: torch.Tensor
    """Of this rank."""
    grad_norm: torch.Tensor
    """Before clipping."""
    lr: float
    weight_decay: float
    momentum: float
    measures: Measures | None
    """What is only looked at now and then; None unless it was asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measures:
    """Of the teacher's targets, as scalars on the device."""

    entropy: torch.Tensor
    """Nats; mean over this rank's images."""
    marginal_entropy: torch.Tensor
    """Nats; of the mean target over all ranks."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """What a part of a batch leaves behind, on the device; the last two only if measured."""

    loss: torch.Tensor
    teacher_K: torch.Tensor
    """Mean of the teacher's logits."""
    targets_K: torch.Tensor
    """Mean of the targets."""
    entropy: torch.Tensor


class Dino:
    """Student, teacher, centre, optimiser and schedules of one run on one rank."""

    def __init__(self, settings: recipe.Recipe, here: place.Place) -> None:
        self.settings = settings
        self.here = here
        student, teacher, source = networks.start(settings)
        self.student, self.teacher = student.to(here.device), teacher.to(here.device)
        precision = devices.resolve(here.device, settings.train.precision)
        for network in (self.student, self.teacher):
            if here.device.type == "cpu" and precision == "bf16":
                vit.attend_plainly(network)
            if settings.train.compile:
                network.compile_blocks()
        self.centre = dino.Centre(settings.head.prototypes, settings.loss.centre_momentum)
        self.centre.to(here.device)
        self.guard = guard.Guard().to(here.device)
        self.optimiser = optim.adamw(self.student, layers.factors(self.student, settings.optim))
        origin.carry(source, settings.start, self.centre, self.student, self.optimiser)
        self._student: nn.Module = self.student
        if here.world_size > 1:
            self._student = DistributedDataParallel(self.student)
        self.lr, self.weight_decay, self.momentum, self.temperature = schedules(settings)

    def step(self, step: int, crops: list[torch.Tensor], *, measure: bool = True) -> Outcome:
        """Train on the views of one batch, as `step_in_parts` with one part."""
        return self.step_in_parts(step, [crops], 1, measure=measure)

    def step_in_parts(
        self, step: int, parts: Iterable[list[torch.Tensor]], count: int, *, measure: bool = True
    ) -> Outcome:
        """Train on one batch in equal parts, unless its loss or gradient is not finite.

        The device is never waited for. What accumulation means is said in `share`.

        Args:
            step: number of the step, from 0; decides schedules and stochastic depth.
            parts: views of each part, as `augment.crops` makes them.
            count: how many parts there are.
            measure: whether `Outcome.measures` is wanted; all ranks must want the same.
        """
        settings = self.settings
        lr, weight_decay = self.lr(step), self.weight_decay(step)
        optim.schedule(self.optimiser, lr, weight_decay)
        self._seed(step)
        self.optimiser.zero_grad(set_to_none=True)
        done = [
            self._part(step, crops, number, count, measure=measure)
            for number, crops in enumerate(parts)
        ]
        grad_norm = optim.clip(self.student.parameters(), settings.optim.clip_norm)
        if step < settings.loss.freeze_last_layer_epochs * settings.train.steps_per_epoch:
            optim.freeze_last_layer(self.student)
        loss = torch.stack([part.loss for part in done]).mean()
        skip = self.guard.judge(step, loss, grad_norm)
        self.centre.update(torch.stack([part.teacher_K for part in done])[None], skip)
        optim.step(self.optimiser, skip)
        momentum = self.momentum(step)
        optim.follow(self.teacher, self.student, momentum)
        measures = None
        if measure:
            marginal_1PK = torch.stack([part.targets_K for part in done])[None]
            entropy = torch.stack([part.entropy for part in done]).mean()
            measures = Measures(entropy, dino.marginal_entropy(marginal_1PK))
        return Outcome(loss, grad_norm, lr, weight_decay, momentum, measures)

    def _part(
        self, step: int, crops: list[torch.Tensor], number: int, count: int, *, measure: bool
    ) -> _Part:
        """Add the gradient of one of `count` parts; the last brings the ranks' together."""
        batch = len(crops[0]) // _GLOBAL_VIEWS
        together: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if number < count - 1 and isinstance(self._student, DistributedDataParallel):
            together = self._student.no_sync()
        with together:
            with devices.autocast(self.here.device, self.settings.train.precision):
                with torch.no_grad():
                    teacher_NK = self.teacher(crops[:1])
                student_NK = self._student(crops, self._kept(step, batch, number, count))
            teacher_GBK = teacher_NK.view(_GLOBAL_VIEWS, batch, -1)
            student_VBK = student_NK.view(-1, batch, student_NK.shape[-1])
            targets_GBK = self.centre.targets(teacher_GBK, self.temperature(step))
            student_temperature = self.settings.loss.student_temperature
            loss = dino.cross_entropy(student_VBK, targets_GBK, student_temperature)
            (loss / count).backward()  # type: ignore[no-untyped-call]
        return _Part(
            loss.detach(),
            teacher_GBK.float().mean(dim=(0, 1)),
            targets_GBK.mean(dim=(0, 1)) if measure else loss.detach(),
            dino.entropy(targets_GBK) if measure else loss.detach(),
        )

    def _kept(self, step: int, batch: int, number: int, count: int) -> list[depth.Bool]:
        """Which views keep which residual branch: a function of (seed, step, place in the batch).

        So neither a resume nor the number of ranks or parts changes what is dropped.

        Args:
            step: number of the step.
            batch: B, of a part.
            number: of the part on this rank.
            count: parts of each rank.

        Returns:
            (L, 2 B) for the global views and, if there are any, (L, (V - 2) B) for the local ones.
        """
        rates_L = self.student.branches.rates_L
        views = _GLOBAL_VIEWS + self.settings.crops.local_count
        generator = draw.rng(self.settings.train.seed, step, DROP_PURPOSE)
        numbers_LVB = generator.random((len(rates_L), views, batch * count * self.here.world_size))
        place = self.here.rank * count + number
        own = slice(place * batch, (place + 1) * batch)
        kept_LVB = numbers_LVB[..., own] >= rates_L[:, None, None]
        parts = np.split(kept_LVB, [_GLOBAL_VIEWS], axis=1)
        return [part.reshape(len(part), part.shape[1] * batch) for part in parts if part.shape[1]]

    def _seed(self, step: int) -> None:
        """Seed torch from (seed, step, rank), for layers that draw random numbers themselves."""
        index = step * self.here.world_size + self.here.rank
        generator = draw.rng(self.settings.train.seed, index, SEED_PURPOSE)
        torch.manual_seed(int(generator.integers(2**63)))


def schedules(
    settings: recipe.Recipe,
) -> tuple[schedule.Cosine, schedule.Cosine, schedule.Cosine, schedule.EpochRamp]:
    """Learning rate, weight decay, EMA momentum and teacher temperature of every step."""
    steps, optim_, ema, loss = (
        settings.train.steps,
        settings.optim,
        settings.ema,
        settings.loss,
    )
    return (
        schedule.Cosine(
            start=settings.peak_lr,
            end=optim_.min_lr,
            steps=steps,
            warmup_steps=settings.warmup_steps,
        ),
        schedule.Cosine(start=optim_.weight_decay, end=optim_.weight_decay_end, steps=steps),
        schedule.Cosine(start=ema.momentum, end=ema.momentum_end, steps=steps),
        schedule.EpochRamp(
            start=loss.teacher_temperature_start,
            end=loss.teacher_temperature,
            epochs=loss.teacher_temperature_epochs,
            steps_per_epoch=settings.train.steps_per_epoch,
        ),
    )
