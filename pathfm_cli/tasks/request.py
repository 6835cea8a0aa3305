"""What a user asks of `embed`, checked before an encoder is loaded; imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathfm_cli import artifacts, errors
from pathfm_cli.data import draw, estimate, sample
from pathfm_cli.tasks import images, source
from pathfm_cli.tasks.datasets import catalogue
from pathfm_cli.wsi import store


def check(
    out: str | os.PathLike[str], *, overwrite: bool = False, kind: str = "embeddings"
) -> None:
    """Refuse an output that is surely something else, before any input is looked at.

    Args:
        out: the file to write.
        overwrite: as for `artifacts.finished`.
        kind: what will be written.

    Raises:
        errors.OutputClash: `out` is a folder, no artifact, or of another kind.
    """
    if os.path.isdir(out):
        raise errors.OutputClash(f"{out} is a folder.", f"-o {Path(out) / f'{kind}.parquet'}")
    settings = {}
    with contextlib.suppress(errors.InputError):
        settings = dict(artifacts.read_header(out).settings)
    artifacts.refuse(out, kind, settings, overwrite=overwrite)


def refuse_images(inputs: Sequence[str]) -> None:
    """Catch image files among the artifacts that were named.

    Raises:
        errors.UsageError: an input is a folder that is no run, a table or an image.
    """
    for name in inputs:
        path = Path(name)
        folder = path.is_dir() and not artifacts.resolve(path).exists()
        if folder or path.suffix.lower() in (".csv", ".tsv", *images.SUFFIXES):
            where = path if folder or path.suffix.lower() in images.TABLES else path.parent
            raise errors.UsageError(
                f"{name} is no artifact of pathfm.",
                f"for image files: pathfm embed --images {where}",
            )


def grid(
    mpp: str | None, size_px: int | None, stride_px: int | None, min_tissue: float | None
) -> source.Grid | None:
    """The grid that options describe; None where none of them was given.

    Args:
        mpp: as `0.5,1`, um/px.
        size_px: side of a patch; None is the default of `draw.SampleConfig`, as for the others.
        stride_px: distance of neighbours; None means the size.
        min_tissue: least share of tissue.

    Raises:
        errors.UsageError: no mpp, or a value is out of range.
    """
    given = {"size_px": size_px, "min_tissue": min_tissue}
    chosen: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if mpp is None:
        if chosen or stride_px is not None:
            raise errors.UsageError("A grid over tissue needs --mpp.", "--mpp 0.5")
        return None
    if stride_px is not None:
        sample.Grid(stride_px=stride_px)
    return source.Grid(draw.SampleConfig(mpp=sample.parse_mpp(mpp), **chosen), stride_px)


def whole_grid(mpp: str, size_px: int, stride_px: int) -> source.Grid:
    """A grid that leaves no tissue out; arguments as `grid`.

    Raises:
        errors.UsageError: `mpp` is none.
    """
    config = draw.SampleConfig(
        mpp=sample.parse_mpp(mpp), size_px=size_px, min_tissue=10.0**-draw.SHARE_DIGITS
    )
    return source.Grid(config, stride_px, to_edge=True)


def open_places(
    path: str | os.PathLike[str], columns: source.Columns, grid: source.Grid | None
) -> source.Source:
    """Open a `patches` artifact, or a `tissue` artifact with a grid over it.

    Raises:
        errors.UsageError: tissue without a grid, patches with one, or as `source.patches`.
        errors.InputError: as `source.patches`.
    """
    kind = artifacts.read_header(path, "patches", "tissue").kind
    if kind == "patches" and grid:
        raise errors.UsageError(
            f"{path} says itself where its patches lie.", "leave out --mpp and the rest of the grid"
        )
    if kind == "tissue" and not grid:
        raise errors.UsageError(
            f"{path} is tissue; a grid over it needs --mpp.", f"pathfm embed {path} --mpp 0.5 ..."
        )
    if grid:
        return source.tissue(Path(path), grid, columns)
    return source.patches(Path(path), columns)


def open_images(
    path: str | os.PathLike[str], columns: source.Columns, grid: source.Grid | None
) -> source.Source:
    """Open a folder or a table of image files.

    Raises:
        errors.UsageError: a grid was described, or as `images.open_images`.
        errors.InputError: as `images.open_images`.
    """
    if grid:
        raise errors.UsageError("A grid is for tissue, not for image files.", "leave out --mpp")
    return images.open_images(Path(path), columns)


def open_named(
    folder: Path | None,
    task: str | None,
    data: Path | None,
    columns: source.Columns,
    grid: source.Grid | None,
    *,
    partial: bool,
) -> source.Source | None:
    """Open what flags name: image files, or a public data set, which leaves no choice; else None.

    Args:
        folder: value of `--images`.
        task: name of a data set.
        data: its folder.
        columns: as in `open_images`.
        grid: as in `open_images`.
        partial: see `datasets.base.Dataset.open`.

    Raises:
        errors.UsageError, errors.InputError: as `open_images`, `catalogue.open_task`.
    """
    if task is not None:
        refused = [f"--{fact}" for fact in source.FACTS if getattr(columns, fact)]
        refused += ["--images"] if folder else []
        refused += ["--mpp"] if grid else []
        return catalogue.open_task(task, data, partial=partial, refused=refused)
    if data or partial:
        raise errors.UsageError("--data and --partial go with --task.", "--task bach")
    return open_images(folder, columns, grid) if folder else None


def plan(data: source.Source, spec: str, out: str | os.PathLike[str]) -> dict[str, Any]:
    """What `embed` would do; loads no encoder and reads no pixels."""
    known = "slide" in data.rows.columns
    slides = data.rows["slide"].drop_nulls().n_unique() if known else 0
    return {
        data.what: data.rows.height,
        **({"slides": slides} if slides else {}),
        "classes": len(source.classes(data.rows)),
        **_cost(data),
        "model": spec,
        "writes": os.path.abspath(out),
    }


def _cost(data: source.Source) -> dict[str, Any]:
    """Bytes and requests of all rows, where they are known, from the tiles under some of them."""
    if data.ranges is None:
        return {}
    order = np.random.default_rng(0).permutation(data.rows.height)
    looked = [data.ranges(int(row)) for row in order[: estimate.LOOKED_UP]]
    share = data.rows.height / len(looked)
    return {
        "bytes": round(share * sum(length for ranges in looked for _, length in ranges)),
        "requests": round(
            share * sum(len(store.merge(ranges, estimate.GAP_BYTES)) for ranges in looked)
        ),
    }
