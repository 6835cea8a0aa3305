"""Images to embeddings: read ahead in threads, one forward pass a batch, finished chunks kept.

Rows are worked off in chunks and batches that depend on nothing but their number, so that a run
that was killed goes on where it was and ends in the same file.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort
from pathfm_cli.model import transform, weights
from pathfm_cli.tasks import ranks, source, storage

CHUNK = 2048
"""Rows written together, fewer where they are large; a killed run loses at most these, and a reader
takes them at once."""
REMOTE_READERS = 32
"""Threads that wait for patches of remote slides, unless told otherwise."""
LARGE = 4
"""An image of more than this many times the encoder's input is resized where it is read."""
CPU_BATCH, MPS_BATCH, LARGEST_BATCH = 32, 64, 1024
MEMORY_SHARE = 0.7
"""Share of the free device memory that a batch may take."""

Report = Callable[[int, int], None]
Loaded = source.Image | str
"""Pixels (H, W, 3) uint8, or why there are none."""
Features = npt.NDArray[np.float32]
Tick = Callable[[int], None]
Compute = Callable[[Sequence[range], Tick], Iterator[tuple[int, pl.DataFrame]]]
"""Number and rows of each chunk of rows, in order; tells how many more rows are done."""


@dataclasses.dataclass(frozen=True, slots=True)
class Embedded:
    """The finished artifact.

    Attributes:
        record: its handle.
        fresh: False where it was there already.
        failures: (id, error) of the images that failed.
    """

    record: dict[str, Any]
    fresh: bool
    failures: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How the work is done; nothing here changes the result."""

    batch_size: int = 0
    """Images in one forward pass; 0 takes what fits the device."""
    workers: int = 0
    """Threads that read; 0 means one per core, or `REMOTE_READERS` where slides are remote."""
    max_failed: int | None = None
    """Give up when more images than this fail."""


def embed(
    data: source.Source,
    encoder: weights.Encoder,
    out: str | os.PathLike[str],
    reading: Reading | None = None,
    *,
    overwrite: bool = False,
    progress: Report = lambda done, total: None,
    compute: Compute | None = None,
) -> Embedded:
    """Embed every row of a source and write the `embeddings` artifact, in the order of the source.

    Processes that torchrun started share the chunks; the file is the one of a single process.

    Args:
        data: what to embed.
        encoder: with what.
        out: the Parquet file to write.
        reading: batch size, threads, patience with failures.
        overwrite: replace a result made with other inputs or settings.
        progress: told (done, total) images.
        compute: who computes the chunks; None: this process.

    Raises:
        errors.OutputClash: `out` holds something else.
        errors.TooManyFailures: more images failed than allowed; finished chunks are kept.
        errors.PathfmError: the device has not enough memory for the batch, or the disk no room.
    """
    header = _header(data, encoder, out)
    if record := artifacts.finished(out, header, overwrite=overwrite):
        return Embedded(record, False, _failures(pl.scan_parquet(Path(out))))
    parts = artifacts.Parts(out, header)
    with ranks.join() as joined:
        reading = reading or Reading()
        compute = compute or functools.partial(chunks, data, encoder, reading)
        failures = _write_parts(data, encoder.shape, compute, parts, reading, progress, joined)
        joined.wait()
        if joined.leads:
            failures = _failures(parts.scan())
            attached = {} if data.table is None else {"slides": _slides(data, data.table)}
            rows = storage.chunk_rows(encoder.shape, CHUNK)
            artifacts.write_table(out, parts.scan(), header, attached=attached, group_rows=rows)
            parts.discard()
        joined.wait()
    return Embedded(artifacts.read_header(out, "embeddings").record(out), True, failures)


def vectors(
    data: source.Source, encoder: weights.Encoder, reading: Reading | None = None
) -> tuple[Features, list[str | None]]:
    """Embed every row of a small source in memory; writes nothing.

    Returns:
        (N, K) float32 in the order of the source, and why a row (then zero) has no vector.
    """
    reading = reading or Reading()
    size, total = reading.batch_size or fitting_batch(encoder), data.rows.height
    batches = [range(at, min(at + size, total)) for at in range(0, total, size)]
    parts = list(_forward(data, encoder, batches, reading.workers))
    reasons = [reason for _, _, lost in parts for reason in lost]
    return np.concatenate([rows for _, rows, _ in parts]), reasons


def summary(done: Embedded, data: source.Source, encoder: weights.Encoder) -> list[str]:
    """Lines for a person."""
    record = done.record
    good = record["rows"] - len(done.failures)
    each = " x ".join(map(str, encoder.shape))
    return [f"{good} {data.what} as {each} numbers each ({encoder.name}): {record['path']}"]


def _header(
    data: source.Source, encoder: weights.Encoder, out: str | os.PathLike[str]
) -> artifacts.Header:
    return artifacts.Header(
        kind="embeddings",
        parents=(data.parent, f"encoder:{encoder.id}"),
        settings={**data.settings, **encoder.settings()},
        files=cohort.companions(data.table, out) if data.table else {},
    )


def _slides(data: source.Source, table: artifacts.Table) -> pl.DataFrame:
    """The rows of the slides that the patches lie on, without their polygons."""
    slides = cohort.slide_rows(table)
    used = slides["slide"].is_in(data.rows["slide"].unique().implode())
    return slides.filter(used).drop("geometry", strict=False)


def _failures(frame: pl.LazyFrame) -> list[tuple[str, str]]:
    failed = frame.filter(pl.col("error").is_not_null()).select("id", "error").collect()
    return list(failed.iter_rows())


def _write_parts(
    data: source.Source,
    shape: tuple[int, ...],
    compute: Compute,
    parts: artifacts.Parts,
    reading: Reading,
    progress: Report,
    joined: ranks.Ranks,
) -> list[tuple[str, str]]:
    """Compute this process's chunks that are not there yet; return the failures of what is.

    `shape` is that of an embedding.
    """
    total, finished = data.rows.height, parts.done()
    step = storage.chunk_rows(shape, CHUNK)
    chunks = [range(first, min(first + step, total)) for first in range(0, total, step)]
    undone = [chunk for chunk in chunks if chunk.start // step not in finished]
    missing = [chunk for chunk in undone if joined.mine(chunk.start // step)]
    done = total - sum(map(len, missing))
    storage.check_room(parts.folder, shape, sum(map(len, undone)), total)
    failures = _failures(parts.scan()) if finished else []
    _check_failures(failures, reading.max_failed, f"{done} {data.what}")
    if not missing:
        return failures
    ticked = done

    def tick(rows: int) -> None:
        nonlocal ticked
        ticked += rows
        progress(ticked, total)

    for number, frame in compute(missing, tick):
        parts.write(number, frame)
        done += frame.height
        failures += _failures(frame.lazy())
        _check_failures(failures, reading.max_failed, f"{done} {data.what}")
    return failures


def _check_failures(failures: Sequence[tuple[str, str]], allowed: int | None, of: str) -> None:
    if allowed is not None and len(failures) > allowed:
        name, reason = failures[0]
        raise errors.TooManyFailures(
            f"{len(failures)} of {of} failed, first {name}: {reason}.",
            "allow more with --max-failed; the same command goes on from here",
        )


def chunks(
    data: source.Source,
    encoder: weights.Encoder,
    reading: Reading,
    wanted: Sequence[range],
    tick: Tick = lambda rows: None,
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield the number and the rows of each chunk that is wanted, or part of one; see `Compute`."""
    size = reading.batch_size or fitting_batch(encoder)
    step = storage.chunk_rows(encoder.shape, CHUNK)
    batches = [chunk[at : at + size] for chunk in wanted for at in range(0, len(chunk), size)]
    ends = {chunk.stop for chunk in wanted}
    features: list[Features] = []
    reasons: list[str | None] = []
    for batch, rows, lost in _forward(data, encoder, batches, reading.workers):
        features.append(rows)
        reasons += lost
        tick(len(batch))
        if batch.stop in ends:
            first = batch.stop - len(reasons)
            meta = data.rows[first : batch.stop]
            yield first // step, _frame(meta, np.concatenate(features), reasons)
            features, reasons = [], []


def failed(
    data: source.Source, shape: tuple[int, ...], row: int, reason: str
) -> tuple[int, pl.DataFrame]:
    """What `chunks` yields for a row that has no embedding, of this `shape` otherwise."""
    features = np.zeros((1, *shape), np.float32)
    return row // storage.chunk_rows(shape, CHUNK), _frame(data.rows[row], features, [reason])


def _frame(meta: pl.DataFrame, features: Features, reasons: Sequence[str | None]) -> pl.DataFrame:
    embedding = pl.Series("embedding", features, pl.Array(pl.Float32, features.shape[1:]))
    failed = pl.Series("error", reasons, pl.String)
    return meta.with_columns(embedding, failed).with_columns(
        pl.when(pl.col("error").is_null()).then("embedding").alias("embedding")
    )


def _forward(
    data: source.Source,
    encoder: weights.Encoder,
    batches: Sequence[range],
    workers: int,
) -> Iterator[tuple[range, Features, list[str | None]]]:
    """Yield each batch with its features; the next one is already queued on the device."""
    order = itertools.chain.from_iterable(batches)
    ahead = 2 * max(map(len, batches))
    queued: tuple[range, list[str | None], torch.Tensor] | None = None
    with _read_ahead(data, encoder.image_size_px, order, workers, ahead) as loaded:
        for batch in batches:
            pixels = [next(loaded) for _ in batch]
            reasons = [image if isinstance(image, str) else None for image in pixels]
            usable = [image for image in pixels if not isinstance(image, str)]
            queued, before = (batch, reasons, _encode(encoder, usable)), queued
            if before:
                yield _collect(*before)
    if queued:
        yield _collect(*queued)


def _encode(encoder: weights.Encoder, images: Sequence[source.Image]) -> torch.Tensor:
    if not images:
        return torch.empty((0, *encoder.shape))
    try:
        return encoder.encode(images)
    except torch.OutOfMemoryError as error:
        raise errors.PathfmError(
            f"A batch of {len(images)} images does not fit the memory of {encoder.device}.",
            f"--batch-size {max(1, len(images) // 2)}",
        ) from error


def _collect(
    batch: range, reasons: list[str | None], encoded: torch.Tensor
) -> tuple[range, Features, list[str | None]]:
    """Put the features in their rows; a row that failed is zero and has its reason."""
    usable = np.array([reason is None for reason in reasons])
    features = np.zeros((len(batch), *encoded.shape[1:]), np.float32)
    features[usable] = encoded.cpu().numpy()
    for place in np.flatnonzero(~np.isfinite(features.reshape(len(batch), -1)).all(axis=1)):
        features[place], reasons[place] = 0, "the encoder's output is not finite"
    return batch, features, reasons


def readers(data: source.Source, workers: int = 0) -> int:
    """Threads that read: `workers`, or for 0 what suits where the slides lie."""
    return workers or (REMOTE_READERS if data.remote else _cores())


@contextlib.contextmanager
def _read_ahead(
    data: source.Source, size_px: int, order: Iterable[int], workers: int, ahead: int
) -> Iterator[Iterator[Loaded]]:
    """Yield an iterator over the images of `order`, read by threads at most `ahead` of it."""
    pool = futures.ThreadPoolExecutor(readers(data, workers), "pathfm-read")
    waiting: collections.deque[futures.Future[Loaded]] = collections.deque()

    def pixels() -> Iterator[Loaded]:
        for row in order:
            waiting.append(pool.submit(read, data, size_px, row))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield pixels()
    finally:
        pool.shutdown(cancel_futures=True)


def read(data: source.Source, size_px: int, row: int) -> Loaded:
    """Read one image for an encoder of this input side, or say why it cannot be had.

    A large one is made small at once, which bounds memory.
    """
    try:
        pixels = data.read(row)
    except errors.SlideError as error:
        return str(error)
    if pixels.shape[0] * pixels.shape[1] <= LARGE * size_px**2:
        return pixels
    return transform.shrink(torch.from_numpy(pixels)[None], size_px)[0].numpy()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fitting_batch(encoder: weights.Encoder) -> int:
    """The largest power of two whose activations fit; measured on CUDA, fixed elsewhere."""
    if encoder.device.type != "cuda":
        return MPS_BATCH if encoder.device.type == "mps" else CPU_BATCH
    trial = 8
    side = encoder.image_size_px
    encoder.encode(torch.zeros((trial, side, side, 3), dtype=torch.uint8))
    before = torch.cuda.memory_allocated(encoder.device)
    torch.cuda.reset_peak_memory_stats(encoder.device)
    encoder.encode(torch.zeros((trial, side, side, 3), dtype=torch.uint8))
    each = (torch.cuda.max_memory_allocated(encoder.device) - before) / trial
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(encoder.device)
    fitting = int(MEMORY_SHARE * free / max(each, 1))
    return min(LARGEST_BATCH, 1 << max(0, fitting.bit_length() - 1))
