"""What a training run is judged on: its own encoder on the patches it recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.model import export, weights
from pathfm_cli.tasks import embed, features, odcorr, scores, source

PATCHES = "patches.parquet"
"""The fixed patch set in a run folder."""
EXPORTS = "exports"
"""Where a run folder keeps encoders of earlier steps, one folder each."""
Report = Callable[[int, int], None]


def patches_of(run: Path) -> Path:
    """The patch set that a run recorded, also for one of its exports.

    Raises:
        errors.InputError: there is none.
    """
    folder = run if run.is_dir() else run.parent
    path = (folder.parent.parent if folder.parent.name == EXPORTS else folder) / PATCHES
    if not path.is_file():
        raise errors.InputError(
            f"{run} recorded no patches ({path} is missing).",
            f"pathfm odcorr {run} --patches p.parquet",
        )
    return path


def exported(run: Path) -> dict[int, Path]:
    """The encoders of a finished run by the step they had reached, its last one included.

    Raises:
        errors.InputError: it exported none on the way, or a `model.json` is damaged.
    """
    folders = sorted(path.parent for path in (run / EXPORTS).glob(f"*/{export.WEIGHTS}"))
    if not folders:
        raise errors.InputError(
            f"{run} exported no encoder on the way.",
            "pathfm pretrain ... --set train.export_every=1000",
        )
    found = {export.read_info(path).step: path for path in folders}
    return dict(sorted({**found, export.read_info(run).step: run}.items()))


def plan(
    run: Path, patches: Path | None, out: Path | None, split: str | None = None
) -> dict[str, Any]:
    """What measuring a run would do.

    Raises:
        errors.InputError: as `patches_of`, or the patch set cannot be read or has no splits.
        errors.UsageError: it has splits, but not this one.
    """
    chosen = patches or patches_of(run)
    if split is not None:
        _check_split(source.patches(chosen), split, chosen)
    rows = artifacts.read_header(chosen, "patches").rows
    writes = [str(path) for path in scores.written(out)]
    return {"input": str(run), "patches": str(chosen), "rows": rows, "writes": writes}


def images(run: Path, patches: Path | None) -> str:
    """Id of the patches that a run would be measured on.

    Raises:
        errors.InputError: as `plan`.
    """
    chosen = patches or patches_of(run)
    return f"patches:{artifacts.read_header(chosen, 'patches').id}"


def measure(
    run: Path,
    patches: Path | None,
    out: Path | None,
    *,
    split: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    progress: Report = lambda done, total: None,
) -> scores.Result:
    """Measure ODCorr of a run's encoder.

    Args:
        run: run folder or exported weights.
        patches: `patches` artifact; None means the one the run recorded.
        out: see `scores.place`; None writes nothing.
        split: only patches of this split.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32 or bf16: arithmetic of the encoder.
        overwrite: replace what `out` holds.
        progress: called with (patches done, patches).

    Raises:
        errors.InputError, errors.UsageError: as `embed_run` and `odcorr.odcorr`.
        errors.OutputClash: `out` holds something else.
    """
    with tempfile.TemporaryDirectory(prefix="pathfm-") as scratch:
        file = embed_run(
            run,
            patches,
            Path(scratch),
            split=split,
            device=device,
            precision=precision,
            progress=progress,
        )
        opened = features.open_features(file)
        return odcorr.odcorr(opened, out, split=split, device=device, overwrite=overwrite)


def embed_run(
    run: Path,
    patches: Path | None,
    folder: Path,
    *,
    split: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Report = lambda done, total: None,
) -> Path:
    """Embed a patch set with the encoder of a run and return the embeddings file.

    Args:
        run: run folder or exported weights.
        patches: `patches` artifact; None means the one the run recorded.
        folder: where the file is written.
        split: refuse patches that have no such split; all of them are embedded.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32 or bf16.
        progress: called with (patches done, patches).

    Raises:
        errors.InputError, errors.UsageError: as `weights.load` and `source.patches`, or the split
            is not there.
    """
    chosen = patches or patches_of(run)
    artifacts.read_header(chosen, "patches")
    data = source.patches(chosen)
    if split is not None:
        _check_split(data, split, chosen)
    encoder = weights.load(str(run), device=device, precision=precision)
    out = folder / "embeddings.parquet"
    embed.embed(data, encoder, out, progress=progress)
    return out


def _check_split(data: source.Source, split: str, patches: Path) -> None:
    if "split" not in data.rows.columns:
        raise errors.InputError(
            f"{patches} has no column `split`.",
            "leave --split out, or sample from slides that have one: pathfm index --metadata",
        )
    known = data.rows["split"].cast(pl.String).drop_nulls().unique().sort().to_list()
    features.known_split(known, split, patches)
