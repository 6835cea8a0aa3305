"""The book-keeping of a run: metrics, checkpoints, exports. Rank 0 writes, all ranks count."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from pathfm_cli import artifacts, errors
from pathfm_cli.data import skips, stream
from pathfm_cli.model import export, vit
from pathfm_cli.pretrain import (
    augment,
    board,
    checkpoint,
    dino,
    folder,
    health,
    metrics,
    networks,
    place,
    recipe,
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
    parts: int = 1
    patch_cache: Path | None = None


class Book:
    """Counts steps, writes metrics, checkpoints and exports; only rank 0 writes."""

    def __init__(self, job: Job, here: place.Place, first: int) -> None:
        self.job = job
        self.here = here
        self.step = first
        self._health = health.Health(job.run, job.settings, here, first)
        here.wait()  # All ranks have read the metrics before the first of them cuts the file.
        self._log = metrics.Log(job.run / folder.METRICS, first) if here.leads else None
        self.board = board.Board(job.settings, job.run, here, first)
        self._since = time.perf_counter()
        self._logged = first
        self._waited_s = 0.0
        self._failed = 0
        self._skips = skips.Ledger(
            job.settings.train.max_failed, job.run / folder.SKIPPED / f"rank-{here.rank}.jsonl"
        )
        self._named: set[str] = set()

    def timed(self, batches: Iterator[stream.Batch]) -> Iterator[stream.Batch]:
        """Pass batches on; the time spent waiting for them becomes `stall`."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self._since += seconds

    def due(self, every: int) -> bool:
        """Whether the step just taken is a multiple of `every`."""
        return self.step % every == 0

    @property
    def next_is_logged(self) -> bool:
        """Whether the coming step gets a line."""
        settings = self.job.settings.train
        number = self.step + 1
        return number % settings.log_every == 0 or number == settings.steps

    def count(self, method: dino.Dino, outcome: dino.Outcome, batch: stream.Batch) -> None:
        """Count a step and, where one is due, write a line.

        Raises:
            errors.TooManyFailures: too many patches were replaced.
            errors.PathfmError: too many steps in a row were not finite, or the run has collapsed
                and is to end then.
        """
        self._health.remember(self.step, batch.indices)
        self.step += 1
        self._note(batch.failed)
        self._skips.add(len(batch.indices), batch.failed)
        if outcome.measures is not None:
            self._write(outcome, outcome.measures, int(method.guard.skipped))
            self._health.tell(method.guard)
            self._health.check(self.step)

    def save(self, method: dino.Dino) -> None:
        """Keep a checkpoint."""
        self._health.tell(method.guard)
        target = self.job.run / folder.CHECKPOINTS
        checkpoint.save(target, self.step, method, self.job.header.id)

    def publish(self, method: dino.Dino) -> None:
        """Export the teacher as it is now to `exports/step-N`."""
        if self.here.leads:
            settings = {**self.job.header.settings, "step": self.step}
            header = dataclasses.replace(self.job.header, settings=settings)
            target = self.job.run / folder.EXPORTS / f"step-{self.step:06d}"
            encoder = method.teacher.backbone
            info = export_info(self.job.settings, encoder, self.step)
            export.export(target, encoder, info, header)

    def finish(self, method: dino.Dino) -> None:
        """Write the metrics table and, last of all, the teacher."""
        if self._log is None:
            return
        self._log.close()
        self.board.close()
        run = self.job.run
        lines = metrics.table(run / folder.METRICS, run / folder.METRICS_TABLE)
        finite = [line for line in lines if line["loss"] is not None]
        if not finite:
            raise errors.PathfmError("No step of this run was finite.", "a lower learning rate")
        shown = {name: finite[-1][name] for name in ("step", "loss", "kl", "teacher_entropy")}
        shown["failed_patches"] = sum(line["failed_patches"] for line in lines)
        shown["skipped_steps"] = lines[-1]["skipped_steps"]
        header = dataclasses.replace(self.job.header, metrics=shown)
        encoder = method.teacher.backbone
        export.export(run, encoder, export_info(self.job.settings, encoder, self.step), header)

    def _note(self, failures: Sequence[stream.Failure]) -> None:
        """Count replaced patches; name each slide that gives some once."""
        self._failed += len(failures)
        for failure in failures:
            if failure.slide not in self._named:
                self._named.add(failure.slide)
                log.warning("patch %d was replaced by another: %s", failure.index, failure.error)

    def _write(self, outcome: dino.Outcome, seen: dino.Measures, skipped: int) -> None:
        told = torch.stack([outcome.loss, seen.entropy, *outcome.terms.values()])
        shares = told.float().cpu() / self.here.world_size
        loss, entropy, *terms = self.here.total(shares).tolist()
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
            "marginal_entropy": seen.marginal_entropy.item(),
            "kl": loss - entropy,
            "loss_to_uniform": abs(loss - math.log(self.job.settings.head.prototypes)),
            "grad_norm": outcome.grad_norm.item(),
            "images_per_s": images / elapsed_s,
            "stall": self._waited_s / elapsed_s,
            "failed_patches": failed,
            "skipped_steps": skipped,
            **{f"loss_{name}": term for name, term in zip(outcome.terms, terms, strict=True)},
        }
        # JSON has no nan, nor an infinity; a step that was skipped has no loss to speak of.
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line["collapse"] = int(self._health.see(line))
        self._since, self._logged, self._waited_s, self._failed = now, self.step, 0.0, 0
        if self._log is not None:
            self._log.write(line)
        self.board.write("train", line)


def export_info(settings: recipe.Recipe, backbone: nn.Module, step: int) -> export.Info:
    """What the export of an encoder says of it: how to rebuild it and what to feed it."""
    return export.Info(
        arch=settings.model.arch,
        kwargs=networks.kwargs(settings),
        image_size_px=settings.crops.global_size_px,
        mean=augment.MEAN,
        std=augment.STD,
        embedding="avg" if settings.model.global_pool == "avg" else "cls",
        prefix_tokens=vit.prefix_tokens(backbone),
        input=settings.model.input,
        recipe=settings.name,
        step=step,
    )
