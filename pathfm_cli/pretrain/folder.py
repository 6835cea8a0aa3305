"""The run folder: who it belongs to, what lies where.

run.json             what is being trained: the header of the checkpoint to come
config.toml          the recipe, resolved; `--recipe run/config.toml` repeats it
patches.parquet      the fixed patch set that ODCorr is measured on
metrics.jsonl        a line a log step; metrics.parquet when the run is finished
checkpoints/step-N/  to go on from
exports/step-N/      the teacher on the way, if the recipe wants it
model.json, teacher.safetensors  the result
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, config, errors
from pathfm_cli.pretrain import recipe

IDENTITY = "run.json"
CONFIG = "config.toml"
PATCHES = "patches.parquet"
METRICS = "metrics.jsonl"
METRICS_TABLE = "metrics.parquet"
CHECKPOINTS = "checkpoints"
EXPORTS = "exports"
MODEL = "model.json"
RESULT = "teacher.safetensors"
_LOCK = ".lock"

_OWN = (RESULT, MODEL, METRICS_TABLE, CHECKPOINTS, EXPORTS, METRICS, PATCHES, CONFIG, IDENTITY)
"""What `--overwrite` removes, the result first."""
_PATIENCE_S = 30.0


def inspect(run: Path, header: artifacts.Header, *, overwrite: bool) -> dict[str, Any] | None:
    """Return the record if `run` is finished, None if it is to be started or continued.

    Touches nothing.

    Raises:
        errors.OutputClash: `run` is something else; the message names what differs.
    """
    hint = "another -o, or --overwrite to replace it"
    if run.is_file():
        raise errors.OutputClash(f"{run} is a file; a run is a folder.", "another -o")
    if overwrite or not run.exists() or _is_empty(run):
        return None
    if (run / RESULT).exists():
        return artifacts.finished(run, header)
    try:
        old = _read_identity(run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.OutputClash(f"{run} exists and is no run of pathfm.", hint) from error
    if old.id != header.id:
        difference = artifacts.differences(old, header)
        raise errors.OutputClash(f"{run} was begun with {difference}.", hint)
    return None


def refuse(run: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """As `inspect`, before the inputs are known: raise if `run` is surely something else."""
    parents: tuple[str, ...] = ()
    with contextlib.suppress(errors.InputError, OSError, ValueError, KeyError, TypeError):
        old = artifacts.read_header(run) if (run / RESULT).exists() else _read_identity(run)
        parents = old.parents
    header = artifacts.Header(kind="checkpoint", parents=parents, settings=settings)
    inspect(run, header, overwrite=overwrite)


def prepare(
    run: Path, header: artifacts.Header, settings: recipe.Recipe, *, overwrite: bool
) -> None:
    """Write the identity and the resolved recipe; with `overwrite` an earlier run goes first."""
    if overwrite:
        for name in _OWN:
            _remove(run / name)
    with artifacts.atomic(run / CONFIG) as temporary:
        temporary.write_text(config.dumps(settings), encoding="utf-8")
    with artifacts.atomic(run / IDENTITY) as temporary:
        temporary.write_text(header.dumps() + "\n", encoding="utf-8")


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder.

    The lock vanishes with its process. A killed launcher's workers may live for one more step, so
    it is waited for.

    Raises:
        errors.OutputClash: another process trains here.
    """
    with (run / _LOCK).open("w") as file:
        deadline = time.monotonic() + _PATIENCE_S
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise errors.OutputClash(
                    f"Another process trains in {run}.", "wait for it, or choose another -o"
                )
            time.sleep(0.2)
        yield


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_empty(run: Path) -> bool:
    return all(path.name == _LOCK for path in run.iterdir())


def _read_identity(run: Path) -> artifacts.Header:
    document = json.loads((run / IDENTITY).read_text(encoding="utf-8"))
    return artifacts.Header(
        kind=document["kind"],
        parents=tuple(document["parents"]),
        settings=dict(document["settings"]),
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
