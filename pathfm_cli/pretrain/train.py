"""The training loop of one rank: patches to views to steps, with book-keeping between them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from pathfm_cli import errors
from pathfm_cli.data import stream
from pathfm_cli.pretrain import (
    augment,
    book,
    checkpoint,
    dino,
    dinov2,
    folder,
    place,
    recipe,
    share,
    watch,
)

log = logging.getLogger("pathfm.pretrain")


def train(job: book.Job, here: place.Place, stopping: Callable[[], bool]) -> None:
    """Train to the last step, from the newest checkpoint if there is one, and export the teacher.

    Args:
        job: what to train.
        here: this rank.
        stopping: whether this rank was asked to stop.

    Raises:
        errors.Interrupted: a signal came; a checkpoint was written.
        errors.PathfmError: too many steps in a row were not finite, or the run has collapsed and
            `train.on_collapse` is stop.
    """
    settings = job.settings.train
    method = begin(job.settings, here)
    first = checkpoint.restore(job.run / folder.CHECKPOINTS, method, job.header.id)
    _announce(job, here, first)
    ledger = book.Book(job, here, first)
    watcher = watch.Watch(job, here, first, ledger.board)
    ledger.pause(watcher.look(first, method))
    for batch in ledger.timed(batches(job, here, first)):
        pixels = batch.pixels.to(here.device, non_blocking=True)
        watcher.show(ledger.step, pixels, batch.indices.numpy())
        views = augment.parts(job.settings, pixels, batch.indices.numpy(), job.parts)
        logged = ledger.next_is_logged
        outcome = method.step_in_parts(ledger.step, views, job.parts, measure=logged)
        ledger.count(method, outcome, batch)
        stopped = here.any(stopping())
        if not stopped or ledger.step == settings.steps:
            ledger.pause(watcher.look(ledger.step, method))
        if stopped or ledger.step == settings.steps or ledger.due(settings.checkpoint_every):
            ledger.save(method)
        if settings.export_every and ledger.due(settings.export_every):
            ledger.publish(method)
        if stopped and ledger.step < settings.steps:
            # One rank writes; where the first to leave ends the others, it must not be cut short.
            here.wait()
            raise errors.Interrupted(
                f"Stopped after step {ledger.step} of {settings.steps}; a checkpoint is kept.",
                "run the same command again to go on",
            )
    watcher.close()
    ledger.finish(method)


def begin(settings: recipe.Recipe, here: place.Place) -> dino.Dino:
    """Student, teacher and all else of the recipe's method, before the first step."""
    return (
        dinov2.Dinov2(settings, here) if settings.method == "dinov2" else dino.Dino(settings, here)
    )


def batches(job: book.Job, here: place.Place, first: int) -> Iterator[stream.Batch]:
    """The patches of this rank from step `first` to the end."""
    settings = job.settings.train
    if first == settings.steps:
        return iter(())
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
        patches_per_window=settings.patches_per_window,
        policy=settings.level,
        idct=settings.idct,
        pin=here.device.type == "cuda",
        pixels=job.patch_cache,
    )


def _announce(job: book.Job, here: place.Place, first: int) -> None:
    """Say on the log what is about to happen."""
    if here.leads:
        settings = job.settings
        split = share.share(settings.train.batch_size, here.world_size, parts=job.parts)
        log.info("%s; %s", settings.peak_lr_words, split)
        where = f"{here.world_size} x {here.device.type}"
        log.info("steps %d to %d on %s", first, settings.train.steps, where)
