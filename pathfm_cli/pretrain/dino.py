"""The method DINO: what one step does to student, teacher and centre.

Source: facebookresearch/dino, `main_dino.train_one_epoch`; Caron et al. 2021, algorithm 1.
Legend: V views, G global views, B batch, N = V * B, K prototypes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pathfm_cli.data import draw
from pathfm_cli.model import device as devices
from pathfm_cli.pretrain import networks, optim, origin, place, recipe, schedule
from pathfm_cli.pretrain.losses import dino

DROP_PURPOSE = 102
"""Key of the stream of random numbers that seeds stochastic depth."""

_GLOBAL_VIEWS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a step measured, as scalars on the device, and what was set for it."""

    loss: torch.Tensor
    teacher_entropy: torch.Tensor
    """Nats; 0 and ln K are the two collapses."""
    grad_norm: torch.Tensor
    """Before clipping."""
    lr: float
    weight_decay: float
    momentum: float


class Dino:
    """Student, teacher, centre, optimiser and schedules of one run on one rank."""

    def __init__(self, settings: recipe.Recipe, here: place.Place) -> None:
        self.settings = settings
        self.here = here
        student, teacher, source = networks.start(settings)
        self.student, self.teacher = student.to(here.device), teacher.to(here.device)
        self.centre = dino.Centre(settings.head.prototypes, settings.loss.centre_momentum)
        self.centre.to(here.device)
        self.optimiser = optim.adamw(self.student)
        origin.carry(source, settings.start, self.centre, self.student, self.optimiser)
        self._student: nn.Module = self.student
        if here.world_size > 1:
            self._student = DistributedDataParallel(self.student)
        self.lr, self.weight_decay, self.momentum, self.temperature = schedules(settings)

    def step(self, step: int, crops: list[torch.Tensor]) -> Outcome:
        """Train on the views of one batch.

        Args:
            step: number of the step, from 0; decides schedules and stochastic depth.
            crops: as `augment.crops` makes them.
        """
        loss_settings = self.settings.loss
        lr, weight_decay = self.lr(step), self.weight_decay(step)
        optim.schedule(self.optimiser, lr, weight_decay)
        self._seed(step)
        batch = len(crops[0]) // _GLOBAL_VIEWS
        with devices.autocast(self.here.device, self.settings.train.precision):
            with torch.no_grad():
                teacher_NK = self.teacher(crops[:1])
            student_NK = self._student(crops)
        teacher_GBK = teacher_NK.view(_GLOBAL_VIEWS, batch, -1)
        student_VBK = student_NK.view(-1, batch, student_NK.shape[-1])
        targets_GBK = self.centre.targets(teacher_GBK, self.temperature(step))
        loss = dino.cross_entropy(student_VBK, targets_GBK, loss_settings.student_temperature)
        self.centre.update(teacher_GBK)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = optim.clip(self.student.parameters(), self.settings.optim.clip_norm)
        if step < loss_settings.freeze_last_layer_epochs * self.settings.train.steps_per_epoch:
            optim.freeze_last_layer(self.student)
        self.optimiser.step()
        momentum = self.momentum(step)
        optim.follow(self.teacher, self.student, momentum)
        entropy = dino.entropy(targets_GBK)
        return Outcome(loss.detach(), entropy, grad_norm, lr, weight_decay, momentum)

    def _seed(self, step: int) -> None:
        """Seed torch from (seed, step, rank), so that a resumed run drops the same paths."""
        index = step * self.here.world_size + self.here.rank
        generator = draw.rng(self.settings.train.seed, index, DROP_PURPOSE)
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
