"""The endless stream of patches as batches of tensors (paper, section IV-B: online patching).

Which patch stands where is a function of (seed, step, rank); workers only decide who reads it.
So any number of workers, and any split of a batch over ranks, gives the same patches and pixels.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
import torch
from numpy import typing as npt
from torch.utils import data

from pathfm_cli import errors
from pathfm_cli.data import draw, opened, skips
from pathfm_cli.data import workers as processes
from pathfm_cli.wsi import pyramid

PREFETCH_BYTES = 256 << 20
"""Pixels that lie ready ahead of who consumes them, all workers of a rank together."""
MAX_AHEAD = 8
"""Batches that each worker reads ahead at most: small ones would make a long queue."""
ATTEMPTS = 8
"""Replacements drawn for a patch that cannot be read, before the stream gives up."""
REMOTE_BATCHES = 4
"""Batches of remote slides on their way at once where there are no workers."""
THREADS = 2
"""Threads per worker: one reads while the other decodes."""
ALONE_THREADS = 4
"""Threads where there are no workers, at most one per core."""


Failure = skips.Failure
Plan = opened.Plan


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

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a copy to a CUDA device can overlap work."""
        names = ("indices", "patches", "pixels", "mpp", "slides")
        pinned = {name: getattr(self, name).pin_memory() for name in names}
        return dataclasses.replace(self, **pinned)


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
    patches_per_window: int = 1,
    policy: pyramid.Policy = "finer",
    idct: bool = True,
    pin: bool = False,
    prefetch_bytes: int = PREFETCH_BYTES,
    pixels: Path | None = None,
) -> Iterator[Batch]:
    """Read batches `first_step` to `first_step + steps - 1` of one rank, in order.

    Batch t of rank r of R holds the running numbers t*B*R + r*B + (0 .. B-1).

    Args:
        cohort_path: a `tissue` artifact (endless) or a `patches` artifact (its rows, in turn).
        config: how patches are drawn; needed for `tissue`; of `patches` it only chooses slides.
        seed: of the draws.
        batch_size: B, per rank.
        first_step: number of the first batch.
        steps: how many batches.
        rank: r.
        world_size: R.
        workers: processes that read; 0 reads ahead in a thread of this process.
        distinct: go round the first so many patches (paper, section II-D2); 0 means endless.
        patches_per_window: patches in a row that come from one window of a slide: less to read,
            less variety in a batch, see `windows`; 1: every patch on its own.
        policy: which level a patch is read from, see `slide.Slide.level_for`.
        idct: whether JPEG tiles may be decoded at 1/2, 1/4 or 1/8, see `resample`.
        pin: deliver tensors in page-locked memory, for a CUDA device.
        prefetch_bytes: pixels read ahead, by all workers together; each reads one batch ahead at
            least and `MAX_AHEAD` at most. With workers they lie in shared memory.
        pixels: folder on a local disk that keeps the pixels of distinct patches, see `held`.

    Raises:
        errors.UsageError: nothing can be drawn, or windows of a fixed set are asked for; raised
            here, before any worker starts.
        errors.InputError: the artifact cannot be read.
        errors.PathfmError: while iterating, when `ATTEMPTS` replacements failed or workers keep
            dying, see `workers`.
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
        patches_per_window=patches_per_window,
        policy=policy,
        idct=idct,
        pixels=pixels,
    )
    loader = Loader(plan, threads=min(ALONE_THREADS, os.cpu_count() or 1))
    readers = min(workers, steps)
    ahead = _ahead(prefetch_bytes, loader.batch_bytes, max(1, readers))
    if readers:
        return processes.read(Loader(plan, THREADS), readers, ahead, pin)
    return _in_background(loader, ahead, pin)


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

    @property
    def batch_bytes(self) -> int:
        """Bytes of the pixels of one batch; opens the cohort.

        Raises:
            errors.UsageError, errors.InputError: as `batches`.
        """
        return self.plan.batch_size * self._opened.size_px**2 * 3

    @property
    def remote(self) -> bool:
        """Whether any slide lies behind a URL; opens the cohort."""
        return self._opened.cohort.remote

    def read(self, number: int) -> Batch:
        """Batch `number`.

        Raises:
            errors.SlideError: a patch and its replacements cannot be read.
        """
        indices = self.plan.indices(number)
        ready = self._opened
        numbers = [index % ready.count if ready.count else index for index in indices]
        patches, pixels, failed = self._patches(numbers)
        return Batch(
            indices=torch.tensor(list(indices)),
            patches=torch.tensor([patch.index for patch in patches]),
            pixels=torch.from_numpy(pixels),
            mpp=torch.tensor([patch.mpp for patch in patches], dtype=torch.float32),
            slides=torch.tensor([patch.slide for patch in patches]),
            failed=failed,
        )

    @functools.cached_property
    def _opened(self) -> opened.Opened:
        return opened.open_(self.plan)

    @functools.cached_property
    def _pool(self) -> futures.ThreadPoolExecutor:
        return futures.ThreadPoolExecutor(self._threads)

    def _patches(
        self, numbers: Sequence[int]
    ) -> tuple[list[draw.Patch], npt.NDArray[np.uint8], tuple[Failure, ...]]:
        """Patches and pixels; one that cannot be read gives way to the next draw of its number."""
        ready = self._opened
        failures: dict[int, list[Failure]] = {}
        patches = [ready.source.draw(number) for number in numbers]
        pixels, wrong = self._held_or_read(numbers, patches)
        for attempt in range(1, ATTEMPTS + 2):
            for row, error in wrong.items():
                slide = ready.cohort.slides[patches[row].slide].slide
                failures.setdefault(row, []).append(Failure(numbers[row], slide, str(error)))
            if not wrong or attempt > ATTEMPTS:
                break
            rows = list(wrong)
            for row in rows:
                patches[row] = ready.source.draw(numbers[row], attempt)
            pixels[rows], again = self._pixels([patches[row] for row in rows])
            wrong = {rows[position]: error for position, error in again.items()}
        for row, error in wrong.items():
            raise errors.SlideError(
                f"Patch {numbers[row]} and its {ATTEMPTS} replacements cannot be read: {error}.",
                "the same command goes on from the last checkpoint when they can be read again",
            )
        return patches, pixels, tuple(f for row in sorted(failures) for f in failures[row])

    def _held_or_read(
        self, numbers: Sequence[int], patches: Sequence[draw.Patch]
    ) -> tuple[npt.NDArray[np.uint8], dict[int, errors.SlideError]]:
        """As `_pixels`; what lies on the local disk is not read again, what is read goes there."""
        store = self._opened.held
        if store is None:
            return self._pixels(patches)
        pixels, missing = store.get(numbers)
        if not missing:
            return pixels, {}
        pixels[missing], failed = self._pixels([patches[row] for row in missing])
        wrong = {missing[position]: error for position, error in failed.items()}
        good = [row for row in missing if row not in wrong]
        store.put([numbers[row] for row in good], pixels[good])
        return pixels, wrong

    def _pixels(
        self, patches: Sequence[draw.Patch]
    ) -> tuple[npt.NDArray[np.uint8], dict[int, errors.SlideError]]:
        """(B, S, S, 3), and the error of each that cannot be read by its position."""
        ready = self._opened.cohort
        wanted = [
            pyramid.Request(
                ready.slides[patch.slide], patch.x_px0, patch.y_px0, patch.mpp, patch.size_px
            )
            for patch in patches
        ]
        return ready.reader.read_patches(wanted, self._pool)


def _ahead(prefetch_bytes: int, batch_bytes: int, readers: int) -> int:
    """Batches that each of `readers` reads ahead."""
    return max(1, min(MAX_AHEAD, prefetch_bytes // (batch_bytes * readers)))


def _in_background(loader: Loader, ahead: int, pin: bool) -> Iterator[Batch]:
    """Batches read by threads of this process, `ahead` of who consumes them."""

    def read(number: int) -> Batch:
        batch = loader.read(number)
        return batch.pin_memory() if pin else batch

    with futures.ThreadPoolExecutor(REMOTE_BATCHES if loader.remote else 1) as reading:
        waiting: collections.deque[futures.Future[Batch]] = collections.deque()
        try:
            for number in range(len(loader)):
                waiting.append(reading.submit(read, number))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            reading.shutdown(wait=False, cancel_futures=True)
