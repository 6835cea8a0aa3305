"""The method DINO: what one step does to student, teacher and centre.

Source: facebookresearch/dino, `main_dino.train_one_epoch`; Caron et al. 2021, algorithm 1. DINOv2
is built on it, see `dinov2`.
Legend: V views, G global views, B batch, N = V * B, X = G * B, D width, K prototypes, L residual
branches.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pathfm_cli.data import draw
from pathfm_cli.model import depth, vit
from pathfm_cli.model import device as devices
from pathfm_cli.pretrain import (
    guard,
    layers,
    networks,
    objective,
    optim,
    origin,
    place,
    recipe,
    schedule,
    shard,
)
from pathfm_cli.pretrain.losses import dino, kde, koleo

DROP_PURPOSE = 102
"""Key of the stream of random numbers that stochastic depth is drawn from."""
SEED_PURPOSE = 103
"""Key of the stream that seeds torch, for layers that draw by themselves."""

GLOBAL_VIEWS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a step measured, as scalars on the device, and what was set for it."""

    loss: torch.Tensor
    """DINO's, of this rank."""
    terms: Mapping[str, torch.Tensor]
    """What else was minimised, by name, before its weight; of this rank."""
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
class Part:
    """What a part of a batch leaves behind, on the device; the last two only if measured."""

    loss: torch.Tensor
    terms: Mapping[str, torch.Tensor]
    """As `Outcome.terms`."""
    centre: Mapping[str, tuple[torch.Tensor, int]]
    """What moves centres: sums (K) of the teacher's logits, and of how many."""
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
        self.centre = self._centre().to(here.device)
        self.guard = guard.Guard().to(here.device)
        self._student: nn.Module = self._together()
        self.optimiser = optim.adamw(self.student, layers.factors(self.student, settings.optim))
        origin.carry(source, settings.start, self.centre, self.student, self.optimiser)
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
        if settings.optim.clip_by == "part":
            grad_norm = optim.clip_parts(self.student, settings.optim.clip_norm)
        else:
            grad_norm = optim.clip(self.student.parameters(), settings.optim.clip_norm)
        if step < settings.loss.freeze_last_layer_epochs * settings.train.steps_per_epoch:
            optim.freeze_last_layer(self.student)
        loss = torch.stack([part.loss for part in done]).mean()
        skip = self.guard.judge(step, loss, grad_norm)
        self._move_centre(done, skip)
        optim.step(self.optimiser, skip)
        momentum = self.momentum(step)
        optim.follow(self.teacher, self.student, momentum)
        measures = None
        if measure:
            marginal_1PK = torch.stack([part.targets_K for part in done])[None]
            entropy = torch.stack([part.entropy for part in done]).mean()
            measures = Measures(entropy, dino.marginal_entropy(marginal_1PK))
        terms = {n: torch.stack([part.terms[n] for part in done]).mean() for n in done[0].terms}
        return Outcome(loss, terms, grad_norm, lr, weight_decay, momentum, measures)

    def _together(self) -> nn.Module:
        """The student as all ranks train it: the same on each (DDP), or shared (FSDP2)."""
        world_size = self.here.world_size
        if shard.wanted(self.student, self.settings.train.shard_above, world_size):
            shard.split(self.student, self.here.device)
        elif world_size > 1:
            return DistributedDataParallel(self.student)
        return self.student

    def _gathering(self, number: int, count: int) -> contextlib.AbstractContextManager[Any]:
        """Where part `number` of `count` goes forward and back; the last brings ranks together."""
        last = number == count - 1
        if isinstance(self._student, DistributedDataParallel):
            return contextlib.nullcontext() if last else self._student.no_sync()
        if self.here.world_size > 1:
            shard.synchronise(self.student, last=last)
        return contextlib.nullcontext()

    def _centre(self) -> nn.Module:
        """What the centring remembers, for checkpoints."""
        return dino.Centre(self.settings.head.prototypes, self.settings.loss.centre_momentum)

    def _move_centre(self, done: Sequence[Part], skip: torch.Tensor) -> None:
        """Move the centre after a step, unless the step is skipped."""
        assert isinstance(self.centre, dino.Centre)
        sums = [part.centre["class"] for part in done]
        self.centre.update(torch.stack([total_K / rows for total_K, rows in sums])[None], skip)

    def _part(
        self, step: int, crops: list[torch.Tensor], number: int, count: int, *, measure: bool
    ) -> Part:
        """Add the gradient of one of `count` parts; the last brings the ranks' together."""
        batch = len(crops[0]) // GLOBAL_VIEWS
        with self._gathering(number, count):
            with devices.autocast(self.here.device, self.settings.train.precision):
                with torch.no_grad():
                    teacher_NK = self.teacher(crops[:1])
                kept = self._kept(step, batch, number, count)
                student_NK, embeddings_XD = self._student(crops, kept, embeddings=True)
            teacher_GBK = teacher_NK.view(GLOBAL_VIEWS, batch, -1)
            assert isinstance(self.centre, dino.Centre)
            targets_GBK = self.centre.targets(teacher_GBK, self.temperature(step))
            loss = self._class_loss(student_NK, targets_GBK)
            terms = self._spread(embeddings_XD.view(GLOBAL_VIEWS, batch, -1))
            self._backward(loss, terms, count)
        centre = {"class": (teacher_GBK.float().sum(dim=(0, 1)), GLOBAL_VIEWS * batch)}
        return self._left(loss, terms, centre, targets_GBK, measure=measure)

    def _class_loss(self, student_NK: torch.Tensor, targets_GBK: torch.Tensor) -> torch.Tensor:
        student_VBK = student_NK.view(-1, targets_GBK.shape[1], student_NK.shape[-1])
        temperature = self.settings.loss.student_temperature
        return dino.cross_entropy(student_VBK, targets_GBK, temperature)

    def _spread(self, embeddings_GBD: torch.Tensor) -> dict[str, torch.Tensor]:
        """What keeps the student's global embeddings apart; no part of the loss that is told."""
        loss, terms = self.settings.loss, {}
        gathered = loss.spread_over == "ranks"
        if loss.koleo:
            terms["koleo"] = koleo.koleo(embeddings_GBD, gathered=gathered)
        if loss.kde:
            terms["kde"] = kde.kde(embeddings_GBD, loss.kde_concentration, gathered=gathered)
        return terms

    def _backward(self, loss: torch.Tensor, terms: Mapping[str, torch.Tensor], count: int) -> None:
        """Add the gradient of the loss and of the terms, by their weights, in one of the parts."""
        weights = self.settings.loss
        total = loss + sum(getattr(weights, name) * term for name, term in terms.items())
        (total / count).backward()

    def _left(
        self,
        loss: torch.Tensor,
        terms: Mapping[str, torch.Tensor],
        centre: Mapping[str, tuple[torch.Tensor, int]],
        targets_GBK: torch.Tensor,
        *,
        measure: bool,
    ) -> Part:
        nothing = loss.detach()
        return Part(
            loss.detach(),
            {name: term.detach() for name, term in terms.items()},
            centre,
            targets_GBK.mean(dim=(0, 1)) if measure else nothing,
            dino.entropy(targets_GBK) if measure else nothing,
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
        views = GLOBAL_VIEWS + self.settings.crops.local_count
        generator = draw.rng(self.settings.train.seed, step, DROP_PURPOSE)
        numbers_LVB = generator.random((len(rates_L), views, batch * count * self.here.world_size))
        place = self.here.rank * count + number
        own = slice(place * batch, (place + 1) * batch)
        kept_LVB = numbers_LVB[..., own] >= rates_L[:, None, None]
        parts = np.split(kept_LVB, [GLOBAL_VIEWS], axis=1)
        return [part.reshape(len(part), part.shape[1] * batch) for part in parts if part.shape[1]]

    def _seed(self, step: int) -> None:
        """Seed torch from (seed, step, rank), for layers that draw random numbers themselves."""
        index = step * self.here.world_size + self.here.rank
        generator = draw.rng(self.settings.train.seed, index, SEED_PURPOSE)
        torch.manual_seed(int(generator.integers(2**63)))


def schedules(
    settings: recipe.Recipe,
) -> tuple[schedule.Cosine, schedule.Cosine, schedule.Cosine, schedule.Ramp]:
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
        _temperature(loss, settings.train.steps_per_epoch),
    )


def _temperature(loss: objective.Loss, steps_per_epoch: int) -> schedule.Ramp:
    start, end = loss.teacher_temperature_start, loss.teacher_temperature
    epochs = loss.teacher_temperature_epochs
    if loss.teacher_temperature_ramp == "steps":
        return schedule.StepRamp(start=start, end=end, steps=epochs * steps_per_epoch)
    return schedule.EpochRamp(start=start, end=end, epochs=epochs, steps_per_epoch=steps_per_epoch)
