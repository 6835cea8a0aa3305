"""Chunks of `embed` in other processes: each opens the source and loads the encoder once.

A chunk that takes its processes with it is done again in small pieces, so that only the patches
that do it are rows with an error.
"""

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

PIECE = 64
"""Patches of such a chunk that are tried together; those of a piece that does it again, singly."""
LOST = "the processes that embedded it died, one after another"
"""The error of a patch that takes its process with it."""


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
        """The rows of a chunk, or of a part of one, and the number of the chunk.

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


def spread(
    job: Job, workers: cluster.Cluster, data: source.Source, shape: tuple[int, ...]
) -> embed.Compute:
    """How `embed.embed` has its chunks computed by a cluster.

    Args:
        job: what the workers must know.
        workers: the cluster.
        data: the source as it was opened here.
        shape: of one embedding.
    """
    work = Worker(job)

    def lost(rows: range) -> tuple[int, pl.DataFrame]:
        if len(rows) == 1:
            return embed.failed(data, shape, rows.start, LOST)
        size = PIECE if len(rows) > PIECE else 1
        pieces = [rows[at : at + size] for at in range(0, len(rows), size)]
        numbers, frames = zip(*workers.map(work, pieces, lost), strict=True)
        return numbers[0], pl.concat(frames)

    def compute(chunks: Sequence[range], tick: embed.Tick) -> Iterator[tuple[int, pl.DataFrame]]:
        for number, frame in workers.map(work, chunks, lost):
            tick(frame.height)
            yield number, frame

    return compute
