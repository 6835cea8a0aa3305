"""Which rows of a file of embeddings train, choose and score a probe, and what their classes are.

Roles are `train`, `val` (chooses the state of a run) and `test` (is reported). A file may lack
`val` or `test`, not both: then one split does both jobs, and the notes say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import errors
from pathfm_cli.tasks import features

ROLES = ("train", "val", "test")
CHOSEN = "the best state of each run"
"""What a split chooses, unless a method says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """Rows and classes by role; vectors are not loaded yet."""

    source: features.Features
    names: Mapping[str, str]
    """What the file calls the split of each role that it has."""
    classes: tuple[str, ...]
    """Label names, in the order of the catalogue for a data set of it, else sorted (numbers by
    size); position = class."""
    rows: Mapping[str, features.Rows]
    """Positions in the file, ascending."""
    labels: Mapping[str, npt.NDArray[np.int64]]
    """Classes of those rows."""
    notes: tuple[str, ...]
    """What a person should know about the choice of rows."""

    select: str | None
    """The role that chooses the state of a run; None where the last one is taken."""

    @property
    def report(self) -> str:
        """The role whose balanced accuracy is the score."""
        return "test" if "test" in self.names else "val"


def prepare(
    source: features.Features,
    wanted: Mapping[str, str],
    select: str = "val",
    choice: str = CHOSEN,
) -> Data:
    """Choose the rows of every role and number the classes.

    Args:
        source: embeddings with columns `label` and `split`.
        wanted: name of the split for each of `ROLES`. A role under its own name may be absent.
        select: `val`, where there is one, else what is reported; `test`, what is reported; or
            `last`, none.
        choice: what that split chooses, for the notes.

    Raises:
        errors.InputError: no column `label` or `split`, no train or nothing to report, one class
            only, or a label that train lacks.
        errors.UsageError: the file has no split of a name that differs from its role's.
    """
    if "label" not in source.table.columns:
        raise errors.InputError(
            f"{source.path} has no column `label`.",
            "pathfm embed --images TABLE with a column label, or folders DIR/train/CLASS",
        )
    names = _names(source, wanted)
    labelled = source.table["label"].is_not_null().to_numpy()
    every = {role: source.rows(name) for role, name in names.items()}
    rows = {role: chosen[labelled[chosen]] for role, chosen in every.items()}
    for role, chosen in rows.items():
        if not len(chosen):
            raise errors.InputError(
                f"{source.path} has no row with a label and an embedding in {names[role]!r}.",
                f"pathfm show {source.path}",
            )
    classes, labels = number(source, names, rows)
    unlabelled = sum(len(every[role]) - len(rows[role]) for role in rows)
    notes = _selection_notes(names, select, choice) + _notes(source, names, unlabelled)
    notes += _missing_classes(classes, labels)
    report = "test" if "test" in names else "val"
    chooses = {"val": "val" if "val" in names else "test", "test": report, "last": None}[select]
    return Data(source, names, classes, rows, labels, tuple(notes), chooses)


def check_by(source: features.Features, by: str) -> None:
    """See that there is a column of what belongs together.

    Raises:
        errors.UsageError: no such column.
    """
    if by not in source.table.columns:
        has = [name for name in features.COLUMNS if name in source.table.columns]
        known = f" (it has {', '.join(has)})" if has else ""
        raise errors.UsageError(
            f"{source.path} has no column {by!r} to keep rows together by{known}.",
            f"--by {has[0]}" if has else "leave --by out",
        )


def units(
    source: features.Features, rows: features.Rows, by: str = "group"
) -> npt.NDArray[np.int64]:
    """What belongs together among rows, (n,) numbers from 0: by a column, else each row alone.

    Rows without a value stand alone.
    """
    if by not in source.table.columns:
        return np.arange(len(rows))
    alone = pl.Series([f"row {row}" for row in rows], dtype=pl.String)
    named = source.table[by].gather(rows).cast(pl.String)
    keys = pl.select(pl.coalesce(pl.format("group {}", named), alone)).to_series()
    found: npt.NDArray[np.int64] = np.unique(keys.to_numpy(), return_inverse=True)[1]
    return found


def _names(source: features.Features, wanted: Mapping[str, str]) -> dict[str, str]:
    known = source.splits()
    names = {}
    for role in ROLES:
        found = [name for name in features.aliases(wanted[role]) if name in known]
        if found:
            names[role] = found[0]
        elif wanted[role] != role:
            source.split_name(wanted[role])  # raises, and names the splits there are
    if "train" not in names or len(names) == 1:
        raise errors.InputError(
            f"{source.path} needs a split train, and val or test; it has "
            f"{', '.join(known) or 'none'}.",
            "pathfm probe ... --train NAME --test NAME",
        )
    return names


def number(
    source: features.Features, names: Mapping[str, str], rows: Mapping[str, features.Rows]
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """The classes of `train`, and of every role the class of each row.

    Args:
        source: embeddings with a column `label`.
        names: what the file calls each role, for messages.
        rows: positions of rows with a label by role.

    Raises:
        errors.InputError: as `prepare`, about labels.
    """
    column = source.table["label"]
    if column.dtype.is_nested() or column.dtype.is_float():
        raise errors.InputError(
            f"{source.path}: labels are {column.dtype}, not names or integers.",
            "pathfm embed --label COLUMN chooses another column",
        )
    if not column.dtype.is_integer():
        column = column.cast(pl.String)
    known = _ordered(column.gather(rows["train"]).unique().sort(), source.settings)
    if len(known) < 2:
        raise errors.InputError(
            f"{source.path} has one class in train ({known[0]}): nothing to tell apart.",
            "pathfm embed --label COLUMN chooses another column",
        )
    labels = {}
    for role, chosen in rows.items():
        found = column.gather(chosen)
        if strange := sorted(map(str, set(found.unique()) - set(known))):
            raise errors.InputError(
                f"{source.path}: {names[role]} has labels that train lacks: "
                f"{', '.join(strange[:5])}.",
                "name the same classes in every split",
            )
        place = {name: at for at, name in enumerate(known)}
        labels[role] = np.array([place[name] for name in found], dtype=np.int64)
    return tuple(map(str, known)), labels


def _ordered(known: pl.Series, settings: Mapping[str, Any]) -> pl.Series:
    """Classes as the catalogue numbers them, where the embeddings are of a data set of it."""
    published = settings.get("classes", []) if "task" in settings else []
    if set(known) <= set(published):
        return pl.Series([name for name in published if name in set(known)], dtype=known.dtype)
    return known


def _selection_notes(names: Mapping[str, str], select: str, choice: str) -> list[str]:
    """Say it where the split that is reported chose."""
    notes = []
    if select == "test" and len(names) == 3:
        notes.append(
            f"--select test: {choice} is chosen on {names['test']}, the split that is reported, so "
            "the score is optimistic"
        )
    if select != "last" and "val" not in names:
        notes.append(
            f"no split val: {choice} is chosen on {names['test']}, the split that is reported, so "
            "the score is optimistic"
        )
    if select != "last" and "test" not in names:
        notes.append(
            f"no split test: the score is of {names['val']}, which also chose {choice}, so it is "
            "optimistic"
        )
    return notes


def _notes(source: features.Features, names: Mapping[str, str], unlabelled: int) -> list[str]:
    notes = []
    if source.failed:
        notes.append(f"{source.failed} rows without an embedding are left out")
    if unlabelled:
        notes.append(f"{unlabelled} rows without a label are left out")
    if others := [name for name in source.splits() if name not in names.values()]:
        notes.append(f"these splits take no part: {', '.join(others)}")
    return notes


def _missing_classes(
    classes: tuple[str, ...], labels: Mapping[str, npt.NDArray[np.int64]]
) -> list[str]:
    notes = []
    for role, numbers in labels.items():
        absent = np.setdiff1d(np.arange(len(classes)), numbers)
        if len(absent):
            some = ", ".join(classes[i] for i in absent[:5])
            notes.append(f"{role} has no rows of {some}: its balanced accuracy leaves them out")
    return notes
