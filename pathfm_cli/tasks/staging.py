"""A result folder that appears whole, filled beside its place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pathfm_cli import errors


def check(out: Path, name: str) -> None:
    """Make the folder to fill and remove it: some places say only then that they are read-only.

    Args:
        out: the folder to write.
        name: as for `staged`.

    Raises:
        errors.Unwritable: it cannot be made.
    """
    stage = _stage(out, name)
    try:
        stage.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(stage)
    except OSError as error:
        raise errors.Unwritable(out, error.strerror or str(error)) from error


@contextlib.contextmanager
def staged(out: Path, name: str) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place on success, whole.

    It is called as the parts of a table are, so that a rerun finds and clears what a kill left.

    Args:
        out: the folder to write, or a link to it, which stays.
        name: id of the result.
    """
    stage = _stage(out, name)
    out = stage.with_name(stage.name.removesuffix(f".parts-{name}"))
    old = stage.with_name(f"{stage.name}.old")
    if old.exists() and not out.exists():  # a kill between the two renames below
        os.replace(old, out)
    for leftover in (stage, old):
        shutil.rmtree(leftover, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(stage, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _stage(out: Path, name: str) -> Path:
    """The folder that is filled beside `out`, or beside what `out` is a link to."""
    place = Path(os.path.abspath(out.resolve() if out.is_symlink() else out))
    return place.with_name(f"{place.name}.parts-{name}")
