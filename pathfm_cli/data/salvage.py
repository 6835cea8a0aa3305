"""A batch whose reading kills processes: read patch by patch in one that may die."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from multiprocessing import connection, context
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy import typing as npt

from pathfm_cli import errors

if TYPE_CHECKING:
    from pathfm_cli.data import draw, stream

MAX_DEADLY = 8
"""Patches of one batch that may kill their reader."""


def read(start: context.BaseContext, loader: stream.Loader, number: int) -> stream.Batch:
    """Batch `number`; a patch that kills its reader gives way to another, like an unreadable one.

    Args:
        start: how to start processes.
        loader: what reads; it travels to the process.
        number: of the batch.

    Raises:
        errors.PathfmError: more than `MAX_DEADLY` patches kill their reader, or the batch cannot be
            read for another reason.
    """
    deadly: dict[draw.Patch, str] = {}
    while True:
        batch, last = _attempt(start, loader, number, deadly)
        if isinstance(batch, errors.PathfmError):
            raise batch
        if batch is not None:
            return batch
        if last is None or last in deadly or len(deadly) == MAX_DEADLY:
            raise errors.PathfmError(
                f"The processes that read patches {loader.plan.indices(number)[0]} and on die.",
                "less memory: fewer --workers; `pathfm doctor` looks at this machine",
            )
        deadly[last] = f"the process that read patch {last.index} died"


def _attempt(
    start: context.BaseContext, loader: stream.Loader, number: int, deadly: dict[draw.Patch, str]
) -> tuple[stream.Batch | errors.PathfmError | None, draw.Patch | None]:
    """The batch or why there is none, None if the process died; the patch it read last."""
    ours, theirs = start.Pipe(duplex=False)
    process: Any = start.Process(  # type: ignore[attr-defined]
        target=_child, args=(theirs, loader, number, deadly), daemon=True
    )
    process.start()
    theirs.close()
    last: draw.Patch | None = None
    try:
        while True:
            said, what = ours.recv()
            if said == "reading":
                last = what
            elif said == "error":
                return what, last
            else:
                return _unpacked(what), last
    except EOFError:
        return None, last
    finally:
        ours.close()
        process.join()


def _child(
    pipe: connection.Connection,
    loader: stream.Loader,
    number: int,
    deadly: dict[draw.Patch, str],
) -> None:
    plain = loader._pixels

    def one_by_one(
        patches: Sequence[draw.Patch],
    ) -> tuple[npt.NDArray[np.uint8], dict[int, errors.SlideError]]:
        rows: list[npt.NDArray[np.uint8]] = []
        wrong: dict[int, errors.SlideError] = {}
        for row, patch in enumerate(patches):
            if patch in deadly:
                wrong[row] = errors.SlideError(deadly[patch])
                rows.append(np.full((1, patch.size_px, patch.size_px, 3), 255, np.uint8))
                continue
            pipe.send(("reading", patch))
            pixels, failed = plain([patch])
            rows.append(pixels)
            if failed:
                wrong[row] = failed[0]
        return np.concatenate(rows), wrong

    loader._pixels = one_by_one  # type: ignore[method-assign]
    batch = loader[number]
    if isinstance(batch, errors.PathfmError):
        pipe.send(("error", batch))
    else:
        pipe.send(("batch", _packed(batch)))


def _packed(batch: stream.Batch) -> dict[str, Any]:
    """Arrays for tensors: a tensor would be fetched from its process, which is gone by then."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in values.items()}


def _unpacked(values: dict[str, Any]) -> stream.Batch:
    from pathfm_cli.data import stream

    tensors = {n: torch.from_numpy(v) for n, v in values.items() if isinstance(v, np.ndarray)}
    return stream.Batch(**{**values, **tensors})
