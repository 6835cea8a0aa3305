"""The `scores` artifact: a long table, one JSON document and tensors beside it, the table last."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import numpy as safetensors_numpy

from pathfm_cli import artifacts, disk, errors

SCHEMA = {"metric": pl.String, "split": pl.String, "run": pl.Int64, "value": pl.Float64}

Row = tuple[str, str, int | None, float]
"""Metric, split ("" if none), run (None for a summary over runs), value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a task hands to the command line."""

    record: dict[str, Any]
    """The handle, with the flat numbers under `metrics`."""
    notes: Sequence[str] = ()
    """What a person should know; none of it is an error."""
    lines: Sequence[str] = ()
    """The summary for a terminal."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The files of one result."""

    table: Path
    document: Path
    heads: Path
    predictions: Path


def place(out: str | Path) -> Place:
    """Name the files: `-o NAME.parquet` is the table itself, any other name a folder for it."""
    out = Path(out)
    if out.suffix == ".parquet":
        return Place(
            out,
            out.with_suffix(".json"),
            out.with_suffix(".heads.safetensors"),
            out.with_suffix(".predictions.parquet"),
        )
    return Place(
        out / "scores.parquet",
        out / "scores.json",
        out / "heads.safetensors",
        out / "predictions.parquet",
    )


def table(rows: Iterable[Row]) -> pl.DataFrame:
    """The long table."""
    return pl.DataFrame(list(rows), SCHEMA, orient="row")


def written(
    out: str | Path | None, *, heads: bool = False, predictions: bool = False
) -> list[Path]:
    """What `write` leaves behind."""
    if out is None:
        return []
    found = place(out)
    more = [(found.heads, heads), (found.predictions, predictions)]
    return [found.table, found.document, *(path for path, there in more if there)]


def check_free(
    out: str | Path | None, settings: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Refuse an output that holds something else, before any input is read.

    Args:
        out: see `place`.
        settings: what the new artifact's header will say, but for `scored`, which only the input
            knows.
        overwrite: as for `artifacts.finished`.

    Raises:
        errors.OutputClash: `out` cannot be written, or holds no scores or those of other settings.
    """
    if out is None:
        return
    files = place(out)
    folder = files.table.parent
    if files.table.is_dir() or (folder.exists() and not folder.is_dir()):
        raise errors.OutputClash(f"{out} cannot hold scores.", "-o FOLDER or -o NAME.parquet")
    artifacts.refuse(
        files.table, "scores", {**settings, **_scored(files.table)}, overwrite=overwrite
    )
    if files.document.exists() and not _is_ours(files.document):
        raise errors.OutputClash(
            f"{files.document} exists and holds no pathfm scores.",
            "another -o, or remove it yourself",
        )


def write(
    out: str | Path,
    frame: pl.DataFrame,
    header: artifacts.Header,
    details: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    predicted: tuple[pl.DataFrame, artifacts.Header] | None = None,
) -> dict[str, Any]:
    """Write the result and return its record; the table appears last, so it means "complete".

    Args:
        out: see `place`.
        frame: the long table, see `table`.
        header: of kind scores.
        details: more for the JSON document.
        tensors: what was trained, kept as safetensors.
        predicted: an artifact of what was predicted for each image, and its header.
    """
    files = place(out)
    named = {**header.files, "document": files.document.name}
    named |= {"heads": files.heads.name} if tensors else {}
    named |= {"predictions": files.predictions.name} if predicted else {}
    header = dataclasses.replace(header, rows=frame.height, files=named)
    if predicted:
        artifacts.write_table(files.predictions, *predicted)
    if tensors:
        with disk.atomic(files.heads) as temporary:
            # save_file would leave a file that only its owner can read.
            temporary.write_bytes(safetensors_numpy.save(dict(tensors), {"scores": header.id}))
    with disk.atomic(files.document) as temporary:
        document = {**json.loads(header.dumps()), **details, "scores": frame.to_dicts()}
        temporary.write_text(json.dumps(document, indent=2) + "\n")
    return artifacts.write_table(files.table, frame, header)


def notes(out: str | Path) -> tuple[str, ...]:
    """What a person was told when the scores at `out` were made; empty if that is lost."""
    try:
        found = json.loads(place(out).document.read_text())["notes"]
        return tuple(map(str, found)) if isinstance(found, list) else ()
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def unsaved(header: artifacts.Header) -> dict[str, Any]:
    """The record of a result that was not written: it has no path."""
    record = header.record("")
    del record["path"]
    return record


def _scored(table: Path) -> dict[str, Any]:
    """What scores that lie there say of their embeddings."""
    try:
        settings = artifacts.read_header(table).settings
    except errors.InputError:
        return {}
    return {"scored": settings["scored"]} if "scored" in settings else {}


def _is_ours(document: Path) -> bool:
    try:
        return bool(json.loads(document.read_text()).get("kind") == "scores")
    except (OSError, ValueError, AttributeError):
        return False
