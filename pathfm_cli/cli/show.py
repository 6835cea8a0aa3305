"""`pathfm show`: what is this file, and a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pathfm_cli.cli import options, output, pipe

if TYPE_CHECKING:
    from pathfm_cli import artifacts


def show(
    artifact: Annotated[
        list[str] | None, typer.Argument(help="An artifact or a run folder; - reads the pipe.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw it as PNG: patches, embeddings (PCA) or a run's loss."),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> int:
    r"""Say what an artifact is: kind, id, parents, settings, columns with their units.

    \b
    pathfm show tissue.parquet
    pathfm show run/ --picture loss.png
    """
    from pathfm_cli import artifacts, disk, errors, kinds

    if picture is not None:
        disk.check_place(picture)
        if picture.exists() and not overwrite:
            raise errors.OutputClash(f"{picture} exists.", "another --picture, or --overwrite")
    path = pipe.bind("show", artifact or [], {"artifact": pipe.Slot(tuple(kinds.KINDS))})[
        "artifact"
    ]
    header = artifacts.read_header(path)
    if picture is not None:
        _draw(path, header, picture)
    sink = output.Sink(json=json)
    if json:
        sink.line(header.dumps())
    else:
        for line in describe(path, header):
            sink.line(line)
    return 0


def describe(path: Path, header: artifacts.Header) -> list[str]:
    """Lines for a person: what the file is, where it comes from, what it holds."""
    import polars as pl

    from pathfm_cli import artifacts, kinds

    kind = kinds.KINDS[header.kind]
    rows = "" if header.rows is None else f", {header.rows} rows"
    failed = f", {header.failed} failed" if header.failed else ""
    lines = [
        f"{path}: {header.kind} {header.id}{rows}{failed}",
        f"  {kind.doc}, written by `pathfm {kind.verb}`",
    ]
    lines += [f"  from {parent}" for parent in header.parents]
    lines += [f"  {name} = {value}" for name, value in _flat(header.settings)]
    lines += [f"  {name} = {value:.6g}" for name, value in sorted(header.metrics.items())]
    lines += [f"  file {name}: {value}" for name, value in sorted(header.files.items())]
    if artifacts.resolve(path).suffix != ".safetensors":
        units = {column.name: column for column in (*kind.columns, *kind.optional)}
        for name, dtype in pl.read_parquet_schema(path).items():
            known = units.get(name)
            unit = f" [{known.unit}]" if known and known.unit else ""
            shape = f" ({' x '.join(map(str, dtype.shape))})" if isinstance(dtype, pl.Array) else ""
            lines.append(f"  column {name}{unit}{shape}: {known.doc if known else dtype}")
    return lines


def _draw(path: Path, header: artifacts.Header, picture: Path) -> None:
    from pathfm_cli import errors

    if header.kind == "patches":
        from pathfm_cli.data import pictures as patch_pictures

        patch_pictures.contact_sheet(path, picture)
    elif header.kind == "embeddings":
        from pathfm_cli.tasks import pictures as embedding_pictures

        embedding_pictures.pca_map(path, picture)
    elif header.kind == "checkpoint":
        from pathfm_cli.pretrain import pictures as run_pictures

        run_pictures.loss_curve(path, picture)
    else:
        raise errors.UsageError(
            f"There is no picture of {header.kind}.", "pathfm mask slides.parquet --preview DIR"
        )


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in sorted(tree.items()):
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
