"""The endless stream of patches as batches of tensors (paper, section IV-B: online patching).

Which patch stands where is a function of (seed, step, rank); workers only decide who reads it.
So any number of workers, and any split of a batch over ranks, gives the same patches and pixels.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import torch
from numpy import typing as npt
from torch.utils import data

from pathfm_cli import errors
from pathfm_cli.data import cohort, draw

AHEAD = 2
"""Batches that are read ahead: per worker, or in the background where there are no workers."""
ATTEMPTS = 8
"""Replacements drawn for a patch that cannot be read, before the stream gives up."""
THREADS = 2
"""Threads per worker: one reads while the other decodes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A patch that could not be read and was replaced."""

    index: int
    slide: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """B patches of S x S pixels.

    Attributes:
        indices: (B,) int64, running numbers, never repeated; augmentations depend on them.
        patches: (B,) int64, numbers of the patches: the indices modulo what there is.
        pixels: (B, S, S, 3) uint8.
        mpp: (B,) float32, um/px.
        slides: (B,) int64, positions in `Cohort.slides`.
        failed: patches that could not be read; what stands in their place was drawn instead.
    """

    indices: torch.Tensor
    patches: torch.Tensor
    pixels: torch.Tensor
    mpp: torch.Tensor
    slides: torch.Tensor
    failed: tuple[Failure, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the batches of one rank; travels to the workers."""

    cohort_path: Path
    config: draw.SampleConfig | None
    seed: int
    batch_size: int
    first_step: int
    steps: int
    rank: int
    world_size: int
    distinct: int

    def indices(self, number: int) -> range:
        """Running numbers of the batch that is `number` after the first."""
        step = self.first_step + number
        start = (step * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)


def batches(
    cohort_path: str | os.PathLike[str],
    config: draw.SampleConfig | None,
    seed: int,
    *,
    batch_size: int,
    first_step: int,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    distinct: int = 0,
) -> Iterator[Batch]:
    """Read batches `first_step` to `first_step + steps - 1` of one rank, in order.

    Batch t of rank r of R holds the running numbers t*B*R + r*B + (0 .. B-1).

    Args:
        cohort_path: a `tissue` artifact (endless) or a `patches` artifact (its rows, in turn).
        config: how patches are drawn; needed for `tissue`, unused for `patches`.
        seed: of the draws.
        batch_size: B, per rank.
        first_step: number of the first batch.
        steps: how many batches.
        rank: r.
        world_size: R.
        workers: processes that read; 0 reads ahead in a thread of this process.
        distinct: go round the first so many patches (paper, section II-D2); 0 means endless.

    Raises:
        errors.UsageError: nothing can be drawn; raised here, before any worker starts.
        errors.InputError: the artifact cannot be read.
        errors.PathfmError: while iterating, when `ATTEMPTS` replacements failed or a worker died.
    """
    plan = Plan(
        cohort_path=Path(os.path.abspath(cohort_path)),
        config=config,
        seed=seed,
        batch_size=batch_size,
        first_step=first_step,
        steps=steps,
        rank=rank,
        world_size=world_size,
        distinct=distinct,
    )
    loader = Loader(plan, threads=min(4, os.cpu_count() or 1))
    loader.open()
    return _in_workers(plan, workers) if workers and steps else _in_background(loader)


class Loader(data.Dataset["Batch | errors.PathfmError"]):
    """Batches by number; opens the cohort at first use, so that it travels to workers cheaply."""

    def __init__(self, plan: Plan, threads: int) -> None:
        self.plan = plan
        self._threads = threads

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, number: int) -> Batch | errors.PathfmError:
        """Batch `number`, or the error that ends the stream.

        An exception raised in a worker would arrive as a text with a traceback.
        """
        try:
            return self.read(number)
        except errors.PathfmError as error:
            return error

    def open(self) -> None:
        """Open the cohort now.

        Raises:
            errors.UsageError, errors.InputError: as `batches`.
        """
        _ = self._opened

    def read(self, number: int) -> Batch:
        """Batch `number`.

        Raises:
            errors.SlideError: a patch and its replacements cannot be read.
        """
        indices = self.plan.indices(number)
        results = list(self._pool.map(self._patch, indices))
        patches = [patch for patch, _, _ in results]
        return Batch(
            indices=torch.tensor(list(indices)),
            patches=torch.tensor([patch.index for patch in patches]),
            pixels=torch.from_numpy(np.stack([pixels for _, pixels, _ in results])),
            mpp=torch.tensor([patch.mpp for patch in patches], dtype=torch.float32),
            slides=torch.tensor([patch.slide for patch in patches]),
            failed=tuple(failure for _, _, failures in results for failure in failures),
        )

    @functools.cached_property
    def _opened(self) -> tuple[cohort.Cohort, draw.Source, int]:
        """The cohort, what draws from it, and how many patches there are (0: endless)."""
        opened = cohort.open_cohort(self.plan.cohort_path)
        if opened.table.header.kind == "patches":
            rows = draw.Fixed(opened.table, self.plan.seed)
            return opened, rows, min(self.plan.distinct or len(rows), len(rows))
        if self.plan.config is None:
            raise errors.UsageError(f"{self.plan.cohort_path} needs to be told how to draw.")
        sampler = draw.Sampler(opened.table, self.plan.config, self.plan.seed)
        return opened, sampler, self.plan.distinct

    @functools.cached_property
    def _pool(self) -> futures.ThreadPoolExecutor:
        return futures.ThreadPoolExecutor(self._threads)

    def _patch(self, index: int) -> tuple[draw.Patch, npt.NDArray[np.uint8], list[Failure]]:
        """Patch and pixels; one that cannot be read gives way to the next draw of its number."""
        opened, source, count = self._opened
        number = index % count if count else index
        failures: list[Failure] = []
        for attempt in range(ATTEMPTS + 1):
            patch = source.draw(number, attempt)
            slide = opened.slides[patch.slide]
            place = patch.x_px0, patch.y_px0, patch.mpp, patch.size_px
            try:
                return patch, opened.reader.read_patch(slide, *place), failures
            except errors.SlideError as error:
                failures.append(Failure(number, slide.slide, str(error)))
        raise errors.SlideError(
            f"Patch {number} and its {ATTEMPTS} replacements cannot be read: {failures[-1].error}."
        )


def _in_background(loader: Loader) -> Iterator[Batch]:
    """Batches read by one thread of this process, `AHEAD` of who consumes them."""
    with futures.ThreadPoolExecutor(1) as ahead:
        waiting: collections.deque[futures.Future[Batch]] = collections.deque()
        try:
            for number in range(len(loader)):
                waiting.append(ahead.submit(loader.read, number))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            ahead.shutdown(wait=False, cancel_futures=True)


def _in_workers(plan: Plan, workers: int) -> Iterator[Batch]:
    """Batches read by processes, in order."""
    # Never fork: threads and stores of this process would be copied in the middle of their work.
    fresh = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(fresh)
    context.set_forkserver_preload([__name__])
    loader = data.DataLoader(
        Loader(plan, THREADS),
        batch_size=None,
        num_workers=min(workers, plan.steps),
        prefetch_factor=AHEAD,
        multiprocessing_context=context,
        worker_init_fn=_follow_parent,
        # Its own generator, so that this process's random state stays as it is.
        generator=torch.Generator(),
    )
    try:
        for item in loader:
            if isinstance(item, errors.PathfmError):
                raise item
            yield item
    except (RuntimeError, EOFError, OSError) as error:
        # A tensor is fetched from the worker that made it, so a worker may die in between.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise errors.PathfmError(
            f"A process that reads patches died ({(str(error) or 'no answer').splitlines()[0]}).",
            "less memory: fewer --workers; `pathfm doctor` looks at /dev/shm",
        ) from error


def _follow_parent(worker: int) -> None:
    """Let the parent alone decide when this worker ends.

    A signal to the whole process group must not take the batches of the last step away. A parent
    that was killed cannot say anything, and torch's own watch looks at the fork server, which lives
    as long as its children do.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
