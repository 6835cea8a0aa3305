"""A run described in words: before it starts, and when it is finished."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts
from pathfm_cli.data import cohort, draw, estimate, fixed
from pathfm_cli.pretrain import folder, networks, recipe, run
from pathfm_cli.wsi import rows


def plan(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: recipe.Recipe,
    size: run.Size,
    *,
    overwrite: bool,
    machine: run.Machine | None = None,
    measure_s: float = 0.0,
) -> dict[str, Any]:
    """What `pretrain` would do, as names and values for a person; writes nothing.

    Args:
        source: a `tissue` or `patches` artifact.
        out: run folder.
        settings: the recipe.
        size: how the batch is shared.
        overwrite: whether a run made with other inputs or settings would be replaced.
        machine: processes and devices; None: as they are by default.
        measure_s: for how long the run is tried out, about; 0: not at all.

    Raises:
        errors.PathfmError: the inputs, or first weights on this disk, would be refused.
    """
    target = Path(out)
    table = artifacts.read_table(source, *run.INPUTS)
    parent = table.header
    known: draw.Source
    if parent.kind == "tissue":
        known = draw.Sampler(table, settings.data, settings.train.seed)
    else:
        known = fixed.Fixed(table, settings.train.seed, settings.data)
    if Path(settings.model.init).exists():
        networks.pair(settings)
    finished = folder.inspect(target, run.identity(source, settings), overwrite=overwrite)
    kept = [] if overwrite else folder.checkpoints(target / folder.CHECKPOINTS)
    start = folder.steps(kept[-1]) if kept else 0
    steps = settings.train.steps
    patches = 0 if finished else (steps - start) * settings.train.batch_size
    machine = machine or run.Machine()
    read = patches
    if machine.patch_cache is not None and settings.train.distinct_patches:
        read = min(patches, settings.train.distinct_patches)
    tried: dict[str, Any] = {}
    if measure_s and patches:
        from pathfm_cli.pretrain import rehearsal

        tried = rehearsal.rehearse(source, settings, size, machine, patches, measure_s)
    return {
        "recipe": settings.name,
        "input": f"{os.fspath(source)} ({parent.kind}, {parent.rows} rows)",
        "encoder": f"{settings.model.arch}, {size.parameters:,} parameters",
        "steps": "none: up to date" if finished else f"{start} to {steps}",
        "slides": rows.about_slides(table)["error"].null_count(),
        "patches": patches,
        **_cost(source, settings, known, read),
        "peak_lr": settings.peak_lr,
        "peak_lr_is": settings.peak_lr_words,
        "batch": str(size.share),
        "processes": size.share.processes,
        **tried,
        "writes": os.fspath(target / folder.RESULT),
    }


def _cost(
    source: str | os.PathLike[str], settings: recipe.Recipe, known: draw.Source, patches: int
) -> dict[str, Any]:
    """Bytes and requests of so many patches, from the tiles under some of them."""
    if not patches:
        return {"bytes": 0, "requests": 0}
    opened = cohort.open_cohort(source, policy=settings.train.level, idct=settings.train.idct)
    each = estimate.cost(opened, map(known.draw, range(estimate.LOOKED_UP)))
    return {"bytes": round(each.bytes * patches), "requests": round(each.requests * patches)}


def summary(out: str | os.PathLike[str]) -> list[str]:
    """A finished run in a few lines for a person."""
    header = artifacts.read_header(out, "checkpoint")
    numbers = header.metrics
    return [
        f"{os.fspath(artifacts.resolve(out))}",
        f"  {header.settings['name']}: {numbers['step']} steps, "
        f"loss {numbers['loss']:.3f}, of it KL to the teacher {numbers['kl']:.3f}",
    ]
