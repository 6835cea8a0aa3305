"""`embed` tried out on this machine: how fast it reads and encodes, and what that means for all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import numpy as np
import torch

from pathfm_cli.data import estimate
from pathfm_cli.model import weights
from pathfm_cli.tasks import embed, source

READ_BATCH = 32
READ_SHARE = 0.4
"""Share of the time that reading is measured; the rest is for the encoder."""


def rehearse(
    data: source.Source, encoder: weights.Encoder, reading: embed.Reading, seconds: float
) -> dict[str, Any]:
    """Try it out on rows from all over the source; writes nothing.

    Args:
        data: what is to be embedded.
        encoder: with what.
        reading: batch size and threads.
        seconds: how long it may take, about; at least two batches are encoded.

    Returns:
        Names and values for a person: rates, the duration, what limits it, the batch, and memory:
        of the encoder's weights, and on CUDA of all.
    """
    began = time.perf_counter()
    read_per_s = estimate.rate(_images(data, reading.workers), READ_SHARE * seconds)
    side, size = encoder.image_size_px, reading.batch_size or embed.fitting_batch(encoder)
    noise = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)
    batches = itertools.repeat(noise)
    # Copied to the CPU, so that what CUDA has only queued is waited for.
    compute = estimate.rate(
        batches, (1 - READ_SHARE) * seconds, lambda images: encoder.encode(images).cpu()
    )
    rates = estimate.Rates(
        read_per_s=read_per_s,
        compute_per_s=compute,
        remote=data.remote,
        seconds=time.perf_counter() - began,
        one_after_the_other=encoder.device.type == "cpu" and not data.remote,
    )
    states = [*encoder.module.parameters(), *encoder.module.buffers()]
    memory = {"memory_gb_of_states": _gb(sum(tensor.nbytes for tensor in states))}
    if encoder.device.type == "cuda":
        memory["memory_gb_per_process"] = _gb(torch.cuda.max_memory_allocated(encoder.device))
    return {**rates.outlook(data.rows.height), "batch": size, **memory}


def _gb(count: float) -> float:
    return round(count / 1e9, 2)


def _images(data: source.Source, workers: int) -> Iterator[list[Any]]:
    """Rows in random order, over and over, read by as many threads as `embed` takes."""
    order = np.random.default_rng(0).permutation(data.rows.height)
    readers = embed.readers(data, workers)
    with futures.ThreadPoolExecutor(readers) as pool:
        at = 0
        while True:
            rows = [int(order[(at + n) % len(order)]) for n in range(READ_BATCH)]
            at += READ_BATCH
            yield list(pool.map(lambda row: embed.read(data, 224, row), rows))
