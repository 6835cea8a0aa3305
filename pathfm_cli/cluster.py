"""Work on many machines through Dask: pieces in, results in the same order, the lost done again.

Dask's machines send each other pickles, which run what they say: only for a network whose machines
are all trusted, or over TLS; see `docs/security.md`. Needs the extra `dask`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import importlib.util
import itertools
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Generic, TypeVar

import pathfm_cli
from pathfm_cli import config, errors

PATIENCE = "PATHFM_DASK_TIMEOUT_S"
"""Environment variable: seconds that a scheduler may take to answer, and its first worker to be
there; 30 unless it is set."""
AHEAD = 4
"""Parcels under way for each thread of the workers."""
KNOWN_S = 1.0
"""How long the number of threads is taken to be what it was: asking costs a round trip."""
SETTLE_S = 0.5
"""How long a new worker waits before its first parcel: Dask's nanny, who asks every 0.05 s whether
a worker is up, never starts one again that dies before it has been seen."""
LOCAL = "local:"
_SCHEDULER = re.compile(r"(tcp|tls)://(\[[\da-f:.]+\]|[\w.-]+)(:\d{1,5})?/?", re.IGNORECASE)
"""TCP has no users and no passwords: an address that holds some is none."""

T = TypeVar("T")
R = TypeVar("R")


def check(address: str) -> None:
    """Refuse an address that is none.

    Raises:
        errors.UsageError: it is neither `local:N` nor a scheduler's, or `PATIENCE` no number.
        errors.MissingExtra: Dask is absent.
    """
    count = address.removeprefix(LOCAL)
    local = address.startswith(LOCAL) and count.isdecimal() and 0 < int(count) <= 1024
    if not local and not _SCHEDULER.fullmatch(address):
        raise errors.UsageError(
            f"--dask {address} names no cluster.", "--dask local:4, or --dask tcp://SCHEDULER:8786"
        )
    if importlib.util.find_spec("distributed") is None:
        raise errors.MissingExtra("--dask", "distributed", "dask")
    patience()


def patience() -> float:
    """Seconds that a scheduler and its first worker are waited for.

    Raises:
        errors.UsageError: `PATIENCE` is no number above 0.
    """
    return config.seconds(PATIENCE, 30)


@contextlib.contextmanager
def spread(address: str | None) -> Iterator[Cluster | None]:
    """A cluster for as long as the block lasts, or None without an address.

    Nothing is started or asked before the first `Cluster.map`.

    Args:
        address: `local:N` for workers on this machine; `tcp://HOST:PORT` or `tls://HOST:PORT` of a
            scheduler; or None.

    Raises:
        errors.UsageError, errors.MissingExtra: as `check`.
    """
    if address is None:
        yield None
        return
    check(address)
    with contextlib.ExitStack() as stack:
        yield Cluster(address, stack)


class Cluster:
    """A cluster that is joined at first use."""

    def __init__(self, address: str, stack: contextlib.ExitStack) -> None:
        self._address = address
        self._stack = stack
        self._threads, self._asked = 1, float("-inf")

    @functools.cached_property
    def _client(self) -> Any:
        return _join(self._address, self._stack)

    @property
    def threads(self) -> int:
        """Threads of all workers, at most `KNOWN_S` ago; at least 1."""
        if time.monotonic() - self._asked > KNOWN_S:
            with self._connected():
                self._threads = max(1, sum(map(int, self._client.nthreads().values())))
            self._asked = time.monotonic()
        return self._threads

    def share(self, pieces: int, most: int) -> int:
        """How many of so many light pieces travel together: `most`, or as every thread has some."""
        return max(1, min(most, pieces // (AHEAD * self.threads)))

    def map(
        self,
        work: Callable[[T], R],
        pieces: Iterable[T],
        lost: Callable[[T], R] | None = None,
        together: int = 1,
    ) -> Iterator[R]:
        """Yield `work(piece)` for every piece, in order.

        A worker that is lost has its pieces done by another one.

        Args:
            work: can be pickled, and gives the same result wherever it runs; sent once a worker.
            pieces: can be pickled.
            together: pieces that travel as one parcel, since a parcel costs the client 3 ms; one
                that takes workers with it is done again piece by piece.
            lost: the result of a piece that took several workers with it (Dask's setting
                `distributed.scheduler.allowed-failures`, 3, and one), and again on its own; None
                raises.

        Raises:
            errors.PathfmError: what `work` raises, a piece was lost, or the scheduler is; Dask
                notices that within `distributed.comm.timeouts.tcp`, 30 s.
        """
        shared = self._submit(_same, _Shared(work))
        waiting: collections.deque[tuple[tuple[T, ...], Any]] = collections.deque()
        each = iter(pieces)
        parcels = iter(lambda: tuple(itertools.islice(each, together)), ())
        try:
            while True:
                room = max(0, AHEAD * self.threads - len(waiting))
                for parcel in itertools.islice(parcels, room):
                    waiting.append((parcel, self._submit(_apply, shared, parcel)))
                if not waiting:
                    return
                parcel, future = waiting.popleft()
                found: Iterable[R]
                try:
                    found = self._result(future)
                except _killed():
                    others = [one for _, one in waiting]
                    found = (self._alone(shared, piece, others, lost) for piece in parcel)
                yield from found
        finally:
            if self._client.status == "running":
                self._client.cancel([future for _, future in waiting])

    def _alone(
        self, shared: Any, piece: T, others: Sequence[Any], lost: Callable[[T], R] | None
    ) -> R:
        """Do a piece again while nothing else is under way: Dask blames all that a worker held."""
        with self._connected():
            for other in others:
                other.exception()  # waits for its end, good or bad
        try:
            found: list[R] = self._result(self._submit(_apply, shared, (piece,)))
        except _killed() as error:
            if lost is not None:
                return lost(piece)
            raise errors.PathfmError(
                "Workers died over the same piece of work, one after another.",
                "workers with more memory; the same command goes on from what is finished",
            ) from error
        return found[0]

    def _submit(self, function: Callable[..., Any], *given: Any) -> Any:
        with self._connected():
            return self._client.submit(function, *given, pure=False)

    def _result(self, future: Any) -> Any:
        with self._connected():
            future.exception()  # waits for its end, good or bad
            if future.status != "error":
                return future.result()
        return future.result()  # raises what the work raised, which may be an OSError of its own

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Say in a sentence that the scheduler is lost, whatever Dask raises then."""
        client = self._client
        try:
            yield
        except Exception as error:
            lost = isinstance(error, OSError | futures.CancelledError)
            if not lost and client.status == "running":
                raise
            why = getattr(error, "reason", None) or errors.first_line(error)
            raise errors.PathfmError(
                f"The cluster is gone: {why}.", "the same command goes on from what is finished"
            ) from error


class _Shared(Generic[T, R]):
    """What is done, as a value that Dask does not look into."""

    def __init__(self, work: Callable[[T], R]) -> None:
        self.work = work


def _join(address: str, stack: contextlib.ExitStack) -> Any:
    """A client of the cluster.

    Raises:
        errors.PathfmError: it cannot be reached, has no worker, or another pathfm.
    """
    distributed: Any = importlib.import_module("distributed")
    # What its parts have to say about workers that come and go is no news: pieces are done again.
    for name in ("distributed", "distributed.client"):  # both have levels, set by the import
        logging.getLogger(name).setLevel(logging.CRITICAL)
    target: Any = address
    if address.startswith(LOCAL):
        target = _start(int(address.removeprefix(LOCAL)), stack)
    seconds = patience()
    security = distributed.Security() if address.startswith("tls://") else None
    try:
        if isinstance(target, str):
            # What listens there and says nothing would be waited for without an end.
            asyncio.run(asyncio.wait_for(_greet(target, security, seconds), seconds))
        client = stack.enter_context(
            distributed.Client(target, timeout=seconds, security=security, set_as_default=False)
        )
        client.wait_for_workers(1, timeout=seconds)
        # The scheduler unpacks the work too.
        versions = _versions(client) | {client.run_on_scheduler(_version)}
    except (OSError, OverflowError, ValueError) as error:
        raise errors.PathfmError(
            f"No scheduler with a worker answers at {address}.",
            "dask scheduler, and on each machine: dask worker SCHEDULER:8786; "
            f"{PATIENCE}=600 waits longer for them",
        ) from error
    except ModuleNotFoundError as error:
        raise errors.PathfmError(
            f"The scheduler or a worker of {address} lacks pathfm ({error}).",
            "install it there as here",
        ) from error
    if versions != {_version()}:
        raise errors.PathfmError(
            f"The scheduler and workers of {address} have pathfm {', '.join(sorted(versions))}, "
            f"not {_version()}.",
            "install the same everywhere",
        )
    return client


async def _greet(address: str, security: Any, seconds: float) -> None:
    """Exchange the first messages with a scheduler, which has until the timeout to be there."""
    comm: Any = importlib.import_module("distributed.comm")
    options = security.get_connection_args("client") if security else {}
    line = await comm.connect(address, timeout=seconds, **options)
    await line.close()


def _start(count: int, stack: contextlib.ExitStack) -> Any:
    """Workers of one thread each on this machine; one that dies is started again."""
    distributed: Any = importlib.import_module("distributed")
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pathfm-"))
    return stack.enter_context(
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
        )
    )


def _same(shared: Any) -> Any:
    return shared


def _apply(shared: _Shared[T, R], parcel: Sequence[T]) -> list[R]:
    _settle()
    return [shared.work(piece) for piece in parcel]


@functools.cache
def _settle() -> None:
    """Wait, once in a process."""
    time.sleep(SETTLE_S)


def _versions(client: Any) -> set[str]:
    """The versions of pathfm on the workers that answer: one may be lost, and nobody knows yet.

    Raises:
        OSError: none answers.
        ModuleNotFoundError: one lacks pathfm.
    """
    found = list(client.run(_version, on_error="return").values())
    versions = {one for one in found if isinstance(one, str)}
    for one in found:
        if not isinstance(one, str | OSError):
            raise one
    if not versions:
        raise OSError("no worker answers")
    return versions


def _version() -> str:
    return pathfm_cli.__version__


def _killed() -> type[Exception]:
    """What Dask raises of a piece that was under way where several workers died."""
    killed: type[Exception] = importlib.import_module("distributed").KilledWorker
    return killed
