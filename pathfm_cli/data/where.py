"""Conditions on the columns of a table, as `--where "stain == 'HE' and mpp < 0.3"`.

A small language, read and never run: Python's parser makes a tree, and only what is named here
becomes a polars expression. Known are `and or not`, `== != < <= > >=` (chains too), `in` and
`not in` a list, columns by name (or `col("a name")`), texts, numbers, `True False None`.

A slide without a value in a column meets no condition on it, but `COLUMN == None`.
"""

from __future__ import annotations

import ast
import difflib
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from pathfm_cli import errors

MAX_CHARACTERS = 2000
_EXAMPLE = "--where \"stain == 'HE' and preservation == 'FFPE'\""
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], pl.Expr]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_Value = str | int | float | bool | None


def parse(text: str) -> ast.expr:
    """Read a condition, without knowing the columns yet.

    Raises:
        errors.UsageError: it is no condition.
    """
    if len(text) > MAX_CHARACTERS:
        raise errors.UsageError(
            f"The condition has {len(text)} characters; at most {MAX_CHARACTERS} are read.",
            "put what decides into one column of the metadata table",
        )
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        message = f"The condition {text!r} cannot be read: {reason}."
        raise errors.UsageError(message, _EXAMPLE) from error


def matches(frame: pl.DataFrame, text: str) -> pl.Series:
    """Which rows meet a condition: a boolean for each, never null.

    Args:
        frame: the table.
        text: the condition.

    Raises:
        errors.UsageError: it is no condition, names no column of the table, or compares a column
            with a value of another type.
    """
    try:
        expression = _Reader(frame, text).condition(parse(text))
        return frame.select(expression.fill_null(False).alias("met")).to_series()
    except (RecursionError, OverflowError, pl.exceptions.PolarsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise errors.UsageError(
            f"The condition {text[:80]!r} cannot be used: {reason}.", _EXAMPLE
        ) from error


class _Reader:
    """From a tree to an expression over the columns of one table."""

    def __init__(self, frame: pl.DataFrame, text: str) -> None:
        self._schema = frame.schema
        self._text = text

    def condition(self, node: ast.expr) -> pl.Expr:
        """What is true or false of a row."""
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            parts: list[pl.Expr] = [self.condition(value) for value in node.values]
            return functools.reduce(join, parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if (name := self._name(node)) is not None:
            if self._dtype(name) != pl.Boolean:
                raise self._error(f"{name} is no condition by itself", f'"{name} == ..."')
            return pl.col(name)
        raise self._unknown(node)

    def _comparison(self, node: ast.Compare) -> pl.Expr:
        sides = [node.left, *node.comparators]
        parts = [
            self._pair(left, op, right)
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False)
        ]
        return functools.reduce(operator.and_, parts)

    def _pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pl.Expr:
        if isinstance(op, ast.In | ast.NotIn):
            found = self._member(left, right)
            return found if isinstance(op, ast.In) else ~found
        names = self._name(left), self._name(right)
        if names == (None, None):
            for side in (left, right):
                self._value(side)
            raise self._error("two values are compared, and no column", _EXAMPLE)
        if isinstance(op, ast.Is | ast.IsNot):
            op = ast.Eq() if isinstance(op, ast.Is) else ast.NotEq()
        sides = []
        for side, name, other in ((left, names[0], names[1]), (right, names[1], names[0])):
            if name is not None:
                self._dtype(name)
                sides.append(pl.col(name))
                continue
            value = self._value(side)
            if value is None:
                return self._null(str(other), op)
            self._check_type(str(other), value)
            sides.append(pl.lit(value))
        if None not in names:
            self._check_alike(str(names[0]), str(names[1]))
        return _COMPARISONS[type(op)](*sides)

    def _null(self, name: str, op: ast.cmpop) -> pl.Expr:
        if not isinstance(op, ast.Eq | ast.NotEq):
            raise self._error("None has no order", f'"{name} == None"')
        self._dtype(name)
        return pl.col(name).is_null() if isinstance(op, ast.Eq) else pl.col(name).is_not_null()

    def _member(self, left: ast.expr, right: ast.expr) -> pl.Expr:
        name = self._name(left)
        if name is None or not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise self._error("`in` takes a column and a list", "\"stain in ['HE', 'IHC']\"")
        values = [self._value(element) for element in right.elts]
        for value in values:
            self._check_type(name, value)
        if not values:
            raise self._error("the list is empty", "\"stain in ['HE', 'IHC']\"")
        parts: list[pl.Expr] = [pl.col(name) == value for value in values]
        return functools.reduce(operator.or_, parts)

    def _name(self, node: ast.expr) -> str | None:
        """The column that a node means, if it means one."""
        if isinstance(node, ast.Name):
            return node.id
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "col"
            and len(node.args) == 1
            and not node.keywords
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            return node.args[0].value
        return None

    def _value(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Constant) and isinstance(
            node.value, str | int | float | bool | None
        ):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -value
        raise self._unknown(node)

    def _dtype(self, name: str) -> pl.DataType:
        if name in self._schema:
            return self._schema[name]
        known = list(self._schema)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"columns: {', '.join(known)}"
        raise self._error(f"the slides have no column {name}", hint)

    def _check_type(self, name: str, value: _Value) -> None:
        kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number"}
        holds, given = _kind(self._dtype(name)), kinds.get(type(value), "None")
        if holds != given:
            example = {"a text": "'...'", "a number": "1", "true or false": "True"}
            hint = f'"{name} == {example[holds]}"' if holds in example else "another column"
            raise self._error(f"{name} holds {holds}, but {value!r} is {given}", hint)

    def _check_alike(self, one: str, other: str) -> None:
        kinds = [_kind(self._dtype(name)) for name in (one, other)]
        if kinds[0] != kinds[1]:
            raise self._error(f"{one} holds {kinds[0]}, {other} {kinds[1]}", "columns of one type")

    def _unknown(self, node: ast.expr) -> errors.UsageError:
        part = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        return self._error(f"{part!r} is no part of a condition", _EXAMPLE)

    def _error(self, what: str, hint: str) -> errors.UsageError:
        return errors.UsageError(f"The condition {self._text!r} cannot be used: {what}.", hint)


def _kind(dtype: pl.DataType) -> str:
    if dtype.is_numeric():
        return "a number"
    if dtype == pl.Boolean:
        return "true or false"
    if dtype in (pl.String, pl.Categorical) or isinstance(dtype, pl.Enum):
        return "a text"
    return f"values of type {dtype}"


def values(frame: pl.DataFrame, text: str) -> Sequence[str]:
    """What the columns of a condition hold, a phrase each, for who wrote one that nothing meets."""
    names = {node.id for node in ast.walk(parse(text)) if isinstance(node, ast.Name)}
    phrases = []
    for name in sorted(names & set(frame.columns)):
        held = sorted(map(str, frame[name].drop_nulls().unique().to_list()))
        some = ", ".join([*held[:5], *(["..."] if len(held) > 5 else [])])
        phrases.append(f"{name} holds {some or 'no value'}")
    return phrases
