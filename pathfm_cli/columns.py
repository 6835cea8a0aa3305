"""What the columns of an artifact must be: there, of their type, without secrets."""

from __future__ import annotations

import os

import polars as pl

from pathfm_cli import addresses, errors, kinds


def check(path: str | os.PathLike[str], table: pl.DataFrame, kind: kinds.Kind) -> None:
    """See that a table has the columns of its kind, each of its type.

    Raises:
        errors.InputError: one is missing, or of another type.
    """
    if missing := [column.name for column in kind.columns if column.name not in table.columns]:
        raise errors.InputError(f"{path} lacks the column {', '.join(missing)}.")
    for column in (*kind.columns, *kind.optional):
        if column.name in table.columns and _wrong(column, table[column.name]):
            raise errors.InputError(
                f"{path}: its column {column.name} is {table.schema[column.name]}, not "
                f"{column.dtype}."
            )


def refuse_secrets(path: str | os.PathLike[str], table: pl.DataFrame) -> None:
    """Refuse addresses that an index would not keep: what is made of the table would keep them.

    Raises:
        errors.InputError: the column `uri` holds one.
    """
    if table.schema.get("uri") != pl.String:
        return
    remote = table["uri"].str.contains("://", literal=True)
    # Without one of these there is none; a million addresses are not looked at one by one.
    suspect = table["uri"].filter(remote & table["uri"].str.contains(addresses.SIGNS))
    if any(map(addresses.holds_secret, suspect)):
        raise errors.InputError(
            f"{path} holds an address with a password, a signature or a query.",
            "index the slides again under plain addresses",
        )


def _wrong(column: kinds.Column, values: pl.Series) -> bool:
    """Whether values have another type than their kind says; of lists the outer one counts."""
    outer, _, _ = column.dtype.partition("(")
    return not isinstance(values.dtype, getattr(pl, outer)) and values.null_count() < len(values)
