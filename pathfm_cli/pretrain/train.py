"""The training loop of one rank: patches to views to steps, with book-keeping between them."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.data import stream
from pathfm_cli.model import export, vit
from pathfm_cli.pretrain import (
    augment,
    checkpoint,
    dino,
    folder,
    metrics,
    networks,
    place,
    recipe,
    stop,
)

log = logging.getLogger("pathfm.pretrain")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One run: input, run folder, what it will be, and how it is done here."""

    source: Path
    run: Path
    header: artifacts.Header
    settings: recipe.Recipe
    workers: int = 0


def train(job: Job, here: place.Place) -> None:
    """Train to the last step, from the newest checkpoint if there is one, and export the teacher.

    Raises:
        errors.Interrupted: a signal came; a checkpoint was written.
        errors.PathfmError: the loss is not finite any more.
    """
    settings = job.settings.train
    method = dino.Dino(job.settings, here)
    first = checkpoint.restore(job.run / folder.CHECKPOINTS, method, job.header.id)
    _announce(job, here, first)
    book = Book(job, here, first)
    with stop.wished() as stopping:
        for batch in book.timed(batches(job, here, first)):
            views = augment.crops(job.settings, batch.pixels.to(here.device), batch.indices)
            outcome = method.step(book.step, views)
            book.count(outcome, batch)
            stopped = here.any(stopping())
            if stopped or book.step == settings.steps or book.due(settings.checkpoint_every):
                book.save(method)
            if settings.export_every and book.due(settings.export_every):
                book.export(method)
            if stopped and book.step < settings.steps:
                raise errors.Interrupted(
                    f"Stopped after step {book.step} of {settings.steps}; a checkpoint is kept.",
                    "run the same command again to go on",
                )
    book.finish(method)


def batches(job: Job, here: place.Place, first: int) -> Iterator[stream.Batch]:
    """The patches of this rank from step `first` to the end."""
    settings = job.settings.train
    return stream.batches(
        job.source,
        job.settings.data,
        settings.seed,
        batch_size=settings.batch_size // here.world_size,
        first_step=first,
        steps=settings.steps - first,
        rank=here.rank,
        world_size=here.world_size,
        workers=job.workers,
        distinct=settings.distinct_patches,
    )


class Book:
    """Counts steps, writes metrics, checkpoints and exports; only rank 0 writes."""

    def __init__(self, job: Job, here: place.Place, first: int) -> None:
        self.job = job
        self.here = here
        self.step = first
        self._log = metrics.Log(job.run / folder.METRICS, first) if here.leads else None
        self._since = time.perf_counter()
        self._logged = first
        self._waited_s = 0.0
        self._failed = 0

    def timed(self, batches: Iterator[stream.Batch]) -> Iterator[stream.Batch]:
        """Pass batches on; the time spent waiting for them becomes `stall`."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def due(self, every: int) -> bool:
        """Whether the step just taken is a multiple of `every`."""
        return self.step % every == 0

    def count(self, outcome: dino.Outcome, batch: stream.Batch) -> None:
        """Count a step and, where one is due, write a line."""
        self.step += 1
        self._failed += len(batch.failed)
        last = self.step == self.job.settings.train.steps
        if self.due(self.job.settings.train.log_every) or last:
            self._write(outcome)

    def save(self, method: dino.Dino) -> None:
        """Keep a checkpoint."""
        if self.here.leads:
            target = self.job.run / folder.CHECKPOINTS
            checkpoint.save(target, self.step, method, self.job.header.id)

    def export(self, method: dino.Dino) -> None:
        """Export the teacher as it is now to `exports/step-N`."""
        if self.here.leads:
            settings = {**self.job.header.settings, "step": self.step}
            header = dataclasses.replace(self.job.header, settings=settings)
            target = self.job.run / folder.EXPORTS / f"step-{self.step:06d}"
            export.export(target, method.teacher.backbone, self._info(method), header)

    def finish(self, method: dino.Dino) -> None:
        """Write the metrics table and, last of all, the teacher."""
        if self._log is None:
            return
        self._log.close()
        run = self.job.run
        last = metrics.table(run / folder.METRICS, run / folder.METRICS_TABLE)
        shown = {name: last[name] for name in ("step", "loss", "teacher_entropy")}
        header = dataclasses.replace(self.job.header, metrics=shown)
        export.export(run, method.teacher.backbone, self._info(method), header)

    def _write(self, outcome: dino.Outcome) -> None:
        shares = torch.stack([outcome.loss, outcome.teacher_entropy]).cpu() / self.here.world_size
        loss, entropy = self.here.total(shares).tolist()
        failed = int(self.here.total(torch.tensor(float(self._failed))).item())
        now = time.perf_counter()
        elapsed_s = now - self._since
        images = (self.step - self._logged) * self.job.settings.train.batch_size
        values = {
            "step": self.step,
            "loss": loss,
            "lr": outcome.lr,
            "weight_decay": outcome.weight_decay,
            "momentum": outcome.momentum,
            "teacher_entropy": entropy,
            "grad_norm": outcome.grad_norm.item(),
            "images_per_s": images / elapsed_s,
            "stall": self._waited_s / elapsed_s,
            "failed_patches": failed,
        }
        self._since, self._logged, self._waited_s, self._failed = now, self.step, 0.0, 0
        if not math.isfinite(loss):
            raise errors.PathfmError(
                f"The loss is {loss} at step {self.step}.",
                f"a lower learning rate: --set optim.base_lr="
                f"{self.job.settings.optim.base_lr / 2:g} --overwrite",
            )
        if self._log is not None:
            self._log.write(values)

    def _info(self, method: dino.Dino) -> export.Info:
        settings = self.job.settings
        return export.Info(
            arch=settings.model.arch,
            kwargs=networks.kwargs(settings),
            image_size_px=settings.crops.global_size_px,
            mean=augment.MEAN,
            std=augment.STD,
            prefix_tokens=vit.prefix_tokens(method.teacher.backbone),
            recipe=settings.name,
            step=self.step,
        )


def _announce(job: Job, here: place.Place, first: int) -> None:
    """Say on the log what is about to happen."""
    if here.leads:
        settings = job.settings
        log.info(
            "peak lr %g = base %g x batch %d / 256",
            settings.peak_lr,
            settings.optim.base_lr,
            settings.train.batch_size,
        )
        where = f"{here.world_size} x {here.device.type}"
        log.info("steps %d to %d on %s", first, settings.train.steps, where)
