"""The fixed patch set a run is judged on: `patches.parquet` in its folder.

ODCorr compares embeddings of randomly selected patches over the course of training (paper, figure
4), so a run draws its set once and keeps it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts
from pathfm_cli.data import cohort, draw, sample
from pathfm_cli.pretrain import recipe

SEED_OFFSET = 1 << 32
"""Added to the run's seed, so that the set is not what the run trains on first."""


def record(source: Path, target: Path, settings: recipe.Recipe) -> None:
    """Write the set, unless it is there: random patches of a tissue, or the first rows of patches.

    Args:
        source: what the run reads.
        target: where the set goes.
        settings: `train.probe_patches` is how many, 0 for none; `data` is how they are drawn.

    Raises:
        errors.UsageError: the tissue gives no patch of this kind.
    """
    count = settings.train.probe_patches
    if not count:
        return
    if artifacts.read_header(source).kind == "tissue":
        choice = sample.Random(n=count, seed=settings.train.seed + SEED_OFFSET)
        sample.sample(source, target, settings.data, choice)
        return
    table = artifacts.read_table(source, "patches")
    data, chosen = settings.data, table.frame
    limits: dict[str, Any] = {}
    if data.where or data.subset < 1:
        slides = table.attached["slides"].filter(pl.col("error").is_null())
        names = slides["slide"].filter(draw.taking_part(slides, data))
        chosen = chosen.filter(pl.col("slide").is_in(names.implode()))
        names_ = ("where", "subset", "subset_seed")
        limits = {name: getattr(data, name) for name in names_}
    header = artifacts.Header(
        kind="patches",
        parents=(f"patches:{table.header.id}",),
        settings={"first": count, **limits},
        files=cohort.companions(table, target),
    )
    if artifacts.finished(target, header) is None:
        artifacts.write_table(target, chosen.head(count), header, attached=table.attached)
