"""The data sets by name, and where their folders are looked for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pathfm_cli import errors
from pathfm_cli.tasks import source
from pathfm_cli.tasks.datasets import bach, base, breakhis, consep, crc, mhist, pcam, tp53

VARIABLE = "PATHFM_DATA"
"""Environment variable that names the folder of all data sets."""
DATASETS: Mapping[str, base.Dataset] = {
    dataset.facts.name: dataset
    for dataset in (
        bach.Bach(),
        crc.Crc(),
        mhist.Mhist(),
        pcam.Pcam(),
        tp53.Tp53(),
        consep.Consep(),
        breakhis.Breakhis(),
    )
}


def find(name: str) -> base.Dataset:
    """The data set of that name.

    Raises:
        errors.UsageError: there is none.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        known = f"known: {', '.join(DATASETS)}"
        raise errors.UsageError(
            f"There is no data set {name!r}.", f"did you mean {close[0]}?" if close else known
        )
    return DATASETS[name]


def locate(name: str, data: Path | None) -> Path:
    """The folder of a data set: `data`, else `$PATHFM_DATA/NAME`, else the user's data folder."""
    if data is not None:
        return data
    if root := os.environ.get(VARIABLE):
        return Path(os.path.expanduser(root)) / name
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(os.path.expanduser(home)) / "pathfm" / name


def open_task(
    name: str, data: Path | None, *, partial: bool, refused: Sequence[str] = ()
) -> source.Source:
    """Open a data set by name.

    Args:
        name: of the data set.
        data: its folder, see `locate`.
        partial: see `base.Dataset.open`.
        refused: options that were given and do not go with a data set.

    Raises:
        errors.UsageError: unknown name, or an option does not fit.
        errors.InputError: as `base.Dataset.open`.
    """
    dataset = find(name)
    if refused:
        raise errors.UsageError(
            f"{refused[0]} does not go with --task: {name} says itself what its images are.",
            f"leave {refused[0]} out",
        )
    return dataset.open(locate(name, data), partial=partial)
