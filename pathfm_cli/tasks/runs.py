"""The embeddings that a training run is judged on: its own encoder on the patches it recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import embed, scores, source

PATCHES = "patches.parquet"
"""The fixed patch set in a run folder."""
Report = Callable[[int, int], None]


def patches_of(run: Path) -> Path:
    """The patch set that a run recorded.

    Raises:
        errors.InputError: there is none.
    """
    path = (run if run.is_dir() else run.parent) / PATCHES
    if not path.is_file():
        raise errors.InputError(
            f"{run} recorded no patches ({path} is missing).",
            f"pathfm odcorr {run} --patches p.parquet",
        )
    return path


def plan(run: Path, patches: Path | None, out: Path | None) -> dict[str, Any]:
    """What measuring a run would do.

    Raises:
        errors.InputError: as `patches_of`, or the patch set cannot be read.
    """
    chosen = patches or patches_of(run)
    rows = artifacts.read_header(chosen, "patches").rows
    writes = [str(path) for path in scores.written(out)]
    return {"input": str(run), "patches": str(chosen), "rows": rows, "writes": writes}


def embed_run(
    run: Path,
    patches: Path | None,
    folder: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    progress: Report = lambda done, total: None,
) -> Path:
    """Embed a patch set with the encoder of a run and return the embeddings file.

    Args:
        run: run folder or exported weights.
        patches: `patches` artifact; None means the one the run recorded.
        folder: where the file is written.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32 or bf16.
        progress: called with (patches done, patches).

    Raises:
        errors.InputError, errors.UsageError: as `weights.load` and `source.patches`.
    """
    chosen = patches or patches_of(run)
    artifacts.read_header(chosen, "patches")
    data = source.patches(chosen)
    encoder = weights.load(str(run), device=device, precision=precision)
    out = folder / "embeddings.parquet"
    embed.embed(data, encoder, out, progress=progress)
    return out
