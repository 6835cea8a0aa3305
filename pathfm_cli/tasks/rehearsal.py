"""`embed` tried out on this machine: how fast it reads and encodes, and what that means for all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import numpy as np

from pathfm_cli.data import estimate
from pathfm_cli.model import weights
from pathfm_cli.tasks import embed, source
from pathfm_cli.wsi import store

READ_BATCH = 32
READ_SHARE = 0.4
"""Share of the time that reading is measured; the rest is for the encoder."""


def rehearse(
    data: source.Source, encoder: weights.Encoder, seconds: float, workers: int = 0
) -> dict[str, Any]:
    """Try it out on rows from all over the source; writes nothing.

    Args:
        data: what is to be embedded.
        encoder: with what.
        seconds: how long it may take, about; at least one batch is encoded.
        workers: threads that read; 0: as many as `embed` takes.

    Returns:
        Names and values for a person: bytes and requests where they are known, rates, the
        duration, what limits it, and the memory of the encoder's weights.
    """
    began = time.perf_counter()
    read_per_s = estimate.rate(_images(data, workers), READ_SHARE * seconds)
    side, size = encoder.image_size_px, embed.fitting_batch(encoder)
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
    return {
        **_cost(data),
        **rates.outlook(data.rows.height),
        "memory_gb_of_states": round(sum(tensor.nbytes for tensor in states) / 1e9, 2),
    }


def _order(data: source.Source) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).permutation(data.rows.height)


def _images(data: source.Source, workers: int) -> Iterator[list[Any]]:
    """Rows in random order, over and over, read by as many threads as `embed` takes."""
    order = _order(data)
    readers = embed.readers(data, workers)
    with futures.ThreadPoolExecutor(readers) as pool:
        at = 0
        while True:
            rows = [int(order[(at + n) % len(order)]) for n in range(READ_BATCH)]
            at += READ_BATCH
            yield list(pool.map(lambda row: embed.read(data, 224, row), rows))


def _cost(data: source.Source) -> dict[str, Any]:
    if data.ranges is None:
        return {}
    looked = [data.ranges(int(row)) for row in _order(data)[: estimate.LOOKED_UP]]
    share = data.rows.height / len(looked)
    return {
        "bytes": round(share * sum(length for ranges in looked for _, length in ranges)),
        "requests": round(
            share * sum(len(store.merge(ranges, estimate.GAP_BYTES)) for ranges in looked)
        ),
    }
