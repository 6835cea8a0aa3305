"""Processes that read batches ahead: the dead are replaced, what killed them is skipped."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import torch
from torch.utils import data

from pathfm_cli import errors
from pathfm_cli.data import salvage

if TYPE_CHECKING:
    from pathfm_cli.data import stream

MAX_DEATHS = 10
"""Reading processes of one rank that may die before the stream gives up."""

_GROUP_SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)

log = logging.getLogger("pathfm.data")


def read(loader: stream.Loader, count: int, ahead: int, pin: bool) -> Iterator[stream.Batch]:
    """Batches read by `count` processes, each `ahead`, in order.

    If a process dies, others go on with the batch that was to come. If one dies again before that
    batch is there, the batch is read patch by patch, and a patch that kills its reader is replaced
    like one that cannot be read.

    Raises:
        errors.PathfmError: the stream ends with it, or more than `MAX_DEATHS` processes died.
    """
    done, deaths, stuck = 0, 0, False
    while done < len(loader):
        try:
            for item in _loaded(loader, done, count, ahead, pin):
                if isinstance(item, errors.PathfmError):
                    raise item
                yield item
                done, stuck = done + 1, False
            return
        except _DiedError as error:
            deaths += 1
            first = loader.plan.indices(done)[0]
            log.warning("a process that reads patches died (%s); on from patch %d", error, first)
            if deaths > MAX_DEATHS:
                raise errors.PathfmError(
                    f"{deaths} processes that read patches died, the last near patch {first} "
                    f"({error}).",
                    "less memory: fewer --workers; `pathfm doctor` looks at /dev/shm",
                ) from error
        if stuck:
            batch = salvage.read(context(), loader, done)
            yield batch.pin_memory() if pin else batch
            done += 1
        stuck = not stuck


def context() -> multiprocessing.context.BaseContext:
    """How processes are started.

    Never by fork: threads and stores of this process would be copied in the middle of their work.
    """
    fresh = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(fresh)
    # Python's tracker of shared memory would die of a signal to the whole group, with a traceback.
    # It keeps what is blocked when it starts; here, a signal only waits meanwhile.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    context.set_forkserver_preload(["pathfm_cli.data.fork_server", "pathfm_cli.data.stream"])
    return context


class _DiedError(Exception):
    """A reading process died."""


def _loaded(
    loader: stream.Loader, first: int, count: int, ahead: int, pin: bool
) -> Iterator[stream.Batch | errors.PathfmError]:
    batches = data.DataLoader(
        loader,
        batch_size=None,
        sampler=range(first, len(loader)),
        num_workers=count,
        prefetch_factor=ahead,
        pin_memory=pin,
        multiprocessing_context=context(),
        worker_init_fn=functools.partial(_follow_parent, dict(os.environ)),
        # Its own generator, so that this process's random state stays as it is.
        generator=torch.Generator(),
    )
    found = iter(batches)
    while True:
        try:
            item = next(found)
        except StopIteration:
            return
        except (RuntimeError, EOFError, OSError) as error:
            # A tensor is fetched from the worker that made it, so a worker may die in between.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise _DiedError((str(error) or "no answer").splitlines()[0]) from error
        yield item


def _follow_parent(environment: Mapping[str, str], worker: int) -> None:
    """Take the parent's environment, and let it alone decide when this worker ends.

    A fork server has the environment of when it was started; credentials and the cache of tiles may
    have been named since.

    A signal to the whole process group must not take the batches of the last step away. A parent
    that was killed cannot say anything, and torch's own watch looks at the fork server, which lives
    as long as its children do.
    """
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
