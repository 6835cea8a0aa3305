"""The run folder: who it belongs to, what lies where.

run.json             what is being trained: the header of the checkpoint to come
config.toml          the recipe, resolved; `--recipe run/config.toml` repeats it
patches.parquet      the fixed patch set that ODCorr is measured on
metrics.jsonl        a line a log step; metrics.parquet when the run is finished
watch.jsonl          a line a look at the teacher; watch.parquet when the run is finished
crops.jpg            views of the first patches, as the networks got them
neighbours.jpg       patches of the fixed set and their nearest neighbours, at the last look
tensorboard/         the metrics once more, if the recipe wants it
skipped/rank-N.jsonl  patches that could not be read and were replaced, if any
checkpoints/step-N/  to go on from
exports/step-N/      the teacher on the way, if the recipe wants it
model.json, teacher.safetensors  the result
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pathfm_cli import artifacts, config, disk, errors
from pathfm_cli.pretrain import recipe

IDENTITY = "run.json"
CONFIG = "config.toml"
PATCHES = "patches.parquet"
METRICS = "metrics.jsonl"
METRICS_TABLE = "metrics.parquet"
WATCH = "watch.jsonl"
WATCH_TABLE = "watch.parquet"
CROPS = "crops.jpg"
NEIGHBOURS = "neighbours.jpg"
TENSORBOARD = "tensorboard"
SKIPPED = "skipped"
CHECKPOINTS = "checkpoints"
EXPORTS = "exports"
MODEL = "model.json"
RESULT = "teacher.safetensors"
_LOCK = ".lock"

_OWN = (
    RESULT,
    MODEL,
    METRICS_TABLE,
    WATCH_TABLE,
    CHECKPOINTS,
    EXPORTS,
    METRICS,
    WATCH,
    CROPS,
    NEIGHBOURS,
    TENSORBOARD,
    SKIPPED,
    PATCHES,
    CONFIG,
    IDENTITY,
)
"""What `--overwrite` removes, the result first."""
_PATIENCE_S = 30.0


def inspect(run: Path, header: artifacts.Header, *, overwrite: bool) -> dict[str, Any] | None:
    """Return the record if `run` is finished, None if it is to be started or continued.

    Another run without any checkpoint, such as one that failed at its start, is nothing to keep.
    `overwrite` replaces a run, never a folder that pathfm did not make. Touches nothing.

    Raises:
        errors.OutputClash: `run` is something else; the message names what differs.
    """
    hint = "another -o, or --overwrite to replace it"
    if run.is_file():
        raise errors.OutputClash(f"{run} is a file; a run is a folder.", "another -o")
    if not run.exists() or _is_empty(run):
        return None
    if not _is_run(run):
        raise errors.OutputClash(f"{run} exists and is no run of pathfm.", "another -o")
    if overwrite:
        return None
    if strange := [name for name in _OWN if disk.is_special(run / name)]:
        raise errors.OutputClash(f"{run / strange[0]} is no file.", hint)
    if (run / RESULT).exists():
        return artifacts.finished(run, header)
    old = _identity(run)
    if old is None:
        raise errors.OutputClash(f"{run} does not say what was begun in it.", hint)
    if old.id != header.id and (run / CHECKPOINTS).exists():
        difference = artifacts.differences(old, header)
        raise errors.OutputClash(f"{run} was begun with {difference}.", hint)
    return None


def refuse(run: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """As `inspect`, before the inputs are known: raise if `run` is surely something else.

    Raises:
        errors.OutputClash: as `inspect`.
        errors.Unwritable: nothing can be written there.
    """
    disk.check_place(run)
    old = artifacts.read_header(run) if (run / RESULT).exists() else _identity(run)
    parents = old.parents if old else ()
    header = artifacts.Header(kind="checkpoint", parents=parents, settings=settings)
    inspect(run, header, overwrite=overwrite)


def prepare(
    run: Path, header: artifacts.Header, settings: recipe.Recipe, *, overwrite: bool
) -> None:
    """Write the identity and the resolved recipe; what another run left goes first.

    Of a run that goes on only the recipe is renewed: what only looks on may have changed. Call it
    only with `lock`, after `inspect`.
    """
    old = _identity(run)
    goes_on = not overwrite and old is not None and old.id == header.id
    for name in () if goes_on else _OWN:
        _remove(run / name)
    # The identity comes first: other machines, and who goes on after a kill, must know the folder.
    with disk.atomic(run / IDENTITY) as temporary:
        temporary.write_text(header.dumps() + "\n", encoding="utf-8")
    with disk.atomic(run / CONFIG) as temporary:
        temporary.write_text(config.dumps(settings), encoding="utf-8")


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keep other processes from training in the same folder, which is made if it is not there.

    The lock vanishes with its process. A killed launcher's workers may live for one more step, so
    it is waited for.

    Raises:
        errors.OutputClash: another process trains here.
    """
    disk.make_folder(run)
    with (run / _LOCK).open("w") as file:
        deadline = time.monotonic() + _PATIENCE_S
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise errors.OutputClash(
                    f"Another process trains in {run}.", "wait for it, or choose another -o"
                )
            time.sleep(0.2)
        yield


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `checkpoints/`, fewest steps first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=steps)


def steps(checkpoint: Path) -> int:
    """Steps taken at a checkpoint, from its name."""
    return int(checkpoint.name.partition("-")[2])


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_empty(run: Path) -> bool:
    """Whether nothing was begun: there is at most the lock, and an identity half written."""
    return all(
        path.name == _LOCK or path.name.startswith(f"{IDENTITY}.tmp-") for path in run.iterdir()
    )


def _is_run(run: Path) -> bool:
    """Whether pathfm began, or wrote, what lies in the folder."""
    if _identity(run) is not None:
        return True
    try:
        return artifacts.read_header(run).kind == "checkpoint"
    except errors.PathfmError:
        return False


def _identity(run: Path) -> artifacts.Header | None:
    """What the folder says is being trained in it; None if it says nothing that can be read."""
    try:
        document = json.loads(disk.read(run / IDENTITY))
        return artifacts.Header(
            kind=document["kind"],
            parents=tuple(document["parents"]),
            settings=dict(document["settings"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
