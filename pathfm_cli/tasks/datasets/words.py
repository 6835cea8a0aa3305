"""The catalogue of data sets in words, and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathfm_cli.tasks.datasets import base

GENERIC = (
    "your own images need no name here: pathfm embed --images FOLDER or TABLE (.csv, .parquet)"
)


def table(datasets: Sequence[base.Dataset]) -> list[str]:
    """One line a data set."""
    lines = [f"{'name':<10}{'classes':>7}  {'images':<42}{'get it by':<14}licence"]
    for dataset in datasets:
        facts = dataset.facts
        way = "--download" if facts.resources else "see its page"
        lines.append(
            f"{facts.name:<10}{len(facts.classes):>7}  {_counts(facts):<42}{way:<14}{facts.licence}"
        )
    return [*lines, GENERIC, "more: pathfm tasks NAME"]


def page(facts: base.Facts) -> list[str]:
    """Everything about one data set."""
    numbers = ", ".join(f"{name}={number}" for number, name in enumerate(facts.classes))
    lines = [
        f"{facts.name}: {facts.title}, {facts.mpp} um/px",
        f"  classes: {numbers}",
        f"  images: {_counts(facts)}",
        f"  licence: {facts.licence}, {facts.licence_url}",
        f"  from: {facts.origin}",
        f"  layout: {'; '.join(facts.layout)}",
        f"  by hand: {facts.instructions}",
    ]
    if facts.resources:
        lines.append(f"  or: pathfm tasks {facts.name} --download --accept-licence --data FOLDER")
    return [*lines, f"  note: {facts.notes}"] if facts.notes else lines


def values(facts: base.Facts) -> dict[str, Any]:
    """As JSON values."""
    return {
        "name": facts.name,
        "title": facts.title,
        "classes": list(facts.classes),
        "images": {split: facts.total(split) for split in facts.counts},
        "mpp": facts.mpp,
        "licence": facts.licence,
        "licence_url": facts.licence_url,
        "origin": facts.origin,
        "layout": list(facts.layout),
        "instructions": facts.instructions,
        "urls": [resource.url for resource in facts.resources],
        "notes": facts.notes,
    }


def found(dataset: base.Dataset, root: Path, *, partial: bool) -> dict[str, Any]:
    """Check a data set's folder and say what is in it.

    Raises:
        errors.InputError: as `base.Dataset.open`.
    """
    opened = dataset.open(root, partial=partial)
    counts = opened.rows["split"].value_counts(sort=True)
    return {
        "task": dataset.facts.name,
        "root": str(dataset.place(root)),
        "complete": not opened.settings.get("partial", False),
        "images": dict(sorted(counts.iter_rows())),
    }


def _counts(facts: base.Facts) -> str:
    return ", ".join(f"{split} {facts.total(split):,}" for split in facts.counts)
