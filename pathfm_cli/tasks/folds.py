"""Cross-validation: every row is reported once, and what belongs together stays together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from pathfm_cli import errors
from pathfm_cli.tasks import features, labelled


def prepare(
    source: features.Features,
    folds: int | str,
    by: str,
    select: str,
    choice: str = labelled.CHOSEN,
) -> list[labelled.Data]:
    """One choice of rows a fold: it is reported, the others train.

    Args:
        source: embeddings with a column `label`; `split` is not looked at, unless it names folds.
        folds: a number, or a column whose values are the folds.
        by: column of what stays together where folds are made; a row without a value stands alone.
        select: `val`, the next fold chooses the state and does not train; `test`, the reported
            fold chooses; `last`, none does.
        choice: what that fold chooses, for the notes.

    Raises:
        errors.UsageError: no such column.
        errors.InputError: no labels, fewer groups than folds, fewer than two folds, or a fold has a
            class that the others lack.
    """
    if "label" not in source.table.columns:
        raise errors.InputError(f"{source.path} has no column `label`.", "pathfm embed --label")
    rows = source.rows()
    rows = rows[source.table["label"].is_not_null().to_numpy()[rows]]
    if isinstance(folds, int):
        names, fold = [str(number) for number in range(folds)], deal(source, rows, folds, by)
    else:
        rows, names, fold = _named(source, rows, folds)
    return [_one(source, rows, fold, names, at, select, choice) for at in range(len(names))]


def deal(
    source: features.Features, rows: features.Rows, count: int, by: str
) -> npt.NDArray[np.int64]:
    """Fold of each row, (n,): groups go whole, those of each class dealt in turn by their hash.

    A group's class is that of most of its rows; the deal depends on the groups' names alone.

    Raises:
        errors.UsageError: no such column.
        errors.InputError: fewer groups than folds.
    """
    labelled.check_by(source, by)
    keys = source.table[by].gather(rows).cast(pl.String)
    alone = pl.Series([f"row {row}" for row in rows], dtype=pl.String)
    frame = pl.DataFrame(
        {"key": keys.fill_null(alone), "label": source.table["label"].gather(rows).cast(pl.String)}
    )
    groups = (
        frame.group_by("key", "label")
        .len()
        .sort("len", "label", descending=[True, False])
        .unique("key", keep="first", maintain_order=True)
    )
    if groups.height < count:
        raise errors.InputError(
            f"{source.path} has {groups.height} different {by}, fewer than {count} folds.",
            f"--folds {max(2, groups.height)}",
        )
    digest = [hashlib.sha256(key.encode()).hexdigest() for key in groups["key"]]
    # One deal through all classes: otherwise the first folds would get the rest of every class.
    order = groups.with_columns(digest=pl.Series(digest, dtype=pl.String)).sort("label", "digest")
    turn = {key: number % count for number, key in enumerate(order["key"])}
    return np.array([turn[key] for key in frame["key"]], dtype=np.int64)


def _named(
    source: features.Features, rows: features.Rows, column: str
) -> tuple[features.Rows, list[str], npt.NDArray[np.int64]]:
    if column not in source.table.columns:
        raise errors.UsageError(
            f"{source.path} has no column {column!r} that names folds.", "--folds 5 --by group"
        )
    values = source.table[column].cast(pl.String)
    rows = rows[values.is_not_null().to_numpy()[rows]]
    found = values.gather(rows)
    names = found.unique().sort().to_list()
    if len(names) < 2:
        raise errors.InputError(
            f"{source.path}: column {column} names {len(names)} folds; two are needed.",
            "--folds 5 --by group",
        )
    place = {name: number for number, name in enumerate(names)}
    return rows, names, np.array([place[name] for name in found], dtype=np.int64)


def _one(
    source: features.Features,
    rows: features.Rows,
    fold: npt.NDArray[np.int64],
    names: list[str],
    number: int,
    select: str,
    choice: str,
) -> labelled.Data:
    chooses = (number + 1) % len(names) if select == "val" and len(names) > 2 else None
    train = (fold != number) & (fold != chooses)
    parts: Mapping[str, features.Rows] = {"train": rows[train]}
    called = {"train": "other folds"}
    if chooses is not None:
        parts = {**parts, "val": rows[fold == chooses]}
        called["val"] = f"fold {names[chooses]}"
    parts = {**parts, "test": rows[fold == number]}
    called["test"] = f"fold {names[number]}"
    classes, labels = labelled.number(source, called, parts)
    notes = []
    if select != "last" and chooses is None:
        notes.append(f"{choice} is chosen on the fold that is reported, so the score is optimistic")
    by_role = {"val": "val" if chooses is not None else "test", "test": "test", "last": None}
    return labelled.Data(source, called, classes, parts, labels, tuple(notes), by_role[select])


def same_classes(parts: list[labelled.Data]) -> tuple[str, ...]:
    """The classes of all folds.

    Raises:
        errors.InputError: a fold's training rows lack a class that another's have.
    """
    for part in parts[1:]:
        if part.classes != parts[0].classes:
            lost = set(part.classes) ^ set(parts[0].classes)
            raise errors.InputError(
                f"{part.source.path}: all rows of {min(lost)} lie in one fold.",
                "fewer folds, or --by another column",
            )
    return parts[0].classes
