"""The method DINO: what one step does to student, teacher and centre.

Source: facebookresearch/dino, `main_dino.train_one_epoch`; Caron et al. 2021, algorithm 1.
Legend: V views, G global views, B batch, N = V * B, K prototypes, L residual branches.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pathfm_cli.data import draw
from pathfm_cli.model import depth, vit
from pathfm_cli.model import device as devices
from pathfm_cli.pretrain import guard, networks, optim, place, recipe, schedule
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


class Dino:
    """Student, teacher, centre, optimiser and schedules of one run on one rank."""

    def __init__(self, settings: recipe.Recipe, here: place.Place) -> None:
        self.settings = settings
        self.here = here
        student, teacher = networks.pair(settings)
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
        self.optimiser = optim.adamw(self.student)
        self._student: nn.Module = self.student
        if here.world_size > 1:
            self._student = DistributedDataParallel(self.student)
        self.lr, self.weight_decay, self.momentum, self.temperature = schedules(settings)

    def step(self, step: int, crops: list[torch.Tensor], *, measure: bool = True) -> Outcome:
        """Train on the views of one batch, unless its loss or gradient is not finite.

        The device is never waited for.

        Args:
            step: number of the step, from 0; decides schedules and stochastic depth.
            crops: as `augment.crops` makes them.
            measure: whether `Outcome.measures` is wanted; all ranks must want the same.
        """
        loss_settings = self.settings.loss
        lr, weight_decay = self.lr(step), self.weight_decay(step)
        optim.schedule(self.optimiser, lr, weight_decay)
        self._seed(step)
        batch = len(crops[0]) // _GLOBAL_VIEWS
        with devices.autocast(self.here.device, self.settings.train.precision):
            with torch.no_grad():
                teacher_NK = self.teacher(crops[:1])
            student_NK = self._student(crops, self._kept(step, batch))
        teacher_GBK = teacher_NK.view(_GLOBAL_VIEWS, batch, -1)
        student_VBK = student_NK.view(-1, batch, student_NK.shape[-1])
        targets_GBK = self.centre.targets(teacher_GBK, self.temperature(step))
        loss = dino.cross_entropy(student_VBK, targets_GBK, loss_settings.student_temperature)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = optim.clip(self.student.parameters(), self.settings.optim.clip_norm)
        if step < loss_settings.freeze_last_layer_epochs * self.settings.train.steps_per_epoch:
            optim.freeze_last_layer(self.student)
        loss = loss.detach()
        skip = self.guard.judge(step, loss, grad_norm)
        self.centre.update(teacher_GBK, skip)
        optim.step(self.optimiser, skip)
        momentum = self.momentum(step)
        optim.follow(self.teacher, self.student, momentum)
        measures = None
        if measure:
            entropies = dino.entropy(targets_GBK), dino.marginal_entropy(targets_GBK)
            measures = Measures(*entropies)
        return Outcome(loss, grad_norm, lr, weight_decay, momentum, measures)

    def _kept(self, step: int, batch: int) -> list[depth.Bool]:
        """Which views keep which residual branch: a function of (seed, step, place in the batch).

        So neither a resume nor the number of ranks changes what is dropped.

        Args:
            step: number of the step.
            batch: B, of this rank.

        Returns:
            (L, 2 B) for the global views and, if there are any, (L, (V - 2) B) for the local ones.
        """
        rates_L = self.student.branches.rates_L
        views = _GLOBAL_VIEWS + self.settings.crops.local_count
        generator = draw.rng(self.settings.train.seed, step, DROP_PURPOSE)
        numbers_LVB = generator.random((len(rates_L), views, batch * self.here.world_size))
        own = slice(self.here.rank * batch, (self.here.rank + 1) * batch)
        kept_LVB = numbers_LVB[..., own] >= rates_L[:, None, None]
        parts = np.split(kept_LVB, [_GLOBAL_VIEWS], axis=1)
        return [part.reshape(len(rates_L), -1) for part in parts if part.shape[1]]

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
