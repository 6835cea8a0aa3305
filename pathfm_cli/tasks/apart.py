"""Chunks of `embed` in other processes: each opens the source and loads the encoder once."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pathfm_cli import cluster, errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import embed, source


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a process needs to know; can be pickled.

    Attributes:
        opening: makes the source.
        loading: makes the encoder.
        parent: what the source must be.
        encoder: id that the encoder must have.
        reading: how the work is done.
    """

    opening: Callable[[], source.Source]
    loading: Callable[[], weights.Encoder]
    parent: str
    encoder: str
    reading: embed.Reading


def job(
    opening: Callable[[], source.Source],
    spec: str,
    how: Mapping[str, Any],
    data: source.Source,
    encoder: weights.Encoder,
    reading: embed.Reading,
) -> Job:
    """What others must know to do as this process would.

    Args:
        opening: makes the source, from absolute paths.
        spec: the encoder, as `weights.load` takes it.
        how: its other arguments.
        data: the source as it was opened here.
        encoder: the encoder as it was loaded here.
        reading: how the work is done.
    """
    # A process with another working folder must find it too.
    found = os.path.abspath(spec) if os.path.exists(spec) else spec
    # `auto` may mean something else there.
    how = {**how, "precision": encoder.precision}
    return Job(
        opening=opening,
        loading=functools.partial(weights.load, found, **how),
        parent=data.parent,
        encoder=encoder.id,
        reading=reading,
    )


class Worker:
    """The function that a cluster maps over chunks; travels without what it has opened."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self._job}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["job"])  # type: ignore[misc]

    def __call__(self, chunk: range) -> tuple[int, pl.DataFrame]:
        """The number and the rows of a chunk.

        Raises:
            errors.InputError: the source or the encoder is another one on this machine.
        """
        with self._lock:
            # One forward pass at a time: the device, or the cores, are shared by the threads.
            data, encoder = self._opened
            ((number, frame),) = embed.chunks(data, encoder, self._job.reading, [chunk])
        return number, frame

    @functools.cached_property
    def _opened(self) -> tuple[source.Source, weights.Encoder]:
        data, encoder = self._job.opening(), self._job.loading()
        job = self._job
        pairs = {"source": (data.parent, job.parent), "encoder": (encoder.id, job.encoder)}
        for what, (here, there) in pairs.items():
            if here != there:
                raise errors.InputError(
                    f"A worker finds another {what} ({here}) than is to be embedded ({there}).",
                    "files on a folder that all machines share",
                )
        return data, encoder


def spread(job: Job, workers: cluster.Cluster) -> embed.Compute:
    """How `embed.embed` has its chunks computed by a cluster."""

    def compute(chunks: Sequence[range], tick: embed.Tick) -> Iterator[tuple[int, pl.DataFrame]]:
        for number, frame in workers.map(Worker(job), chunks):
            tick(frame.height)
            yield number, frame

    return compute
