"""Strict configuration: frozen dataclasses from TOML, with `--set a.b=c` on top.

A component owns its dataclass (fields with a docstring, checks in `__post_init__`); this module
only turns mappings into them and back. Unknown keys and wrong types are errors with a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pathfm_cli import errors

T = TypeVar("T")
_ESCAPED = {chr(code): f"\\u{code:04X}" for code in (*range(32), 127)}
_ESCAPED |= {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
"""What TOML does not take as it is in a text."""
_LARGEST = 2**63 - 1
_EXAMPLES = {int: "1", float: "0.5", bool: "true", str: "TEXT"}


def loads(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: the document.
        origin: its name, for the error message.

    Raises:
        errors.UsageError: the text is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise errors.UsageError(f"{origin} is not valid TOML: {error}.") from error
    except RecursionError as error:
        raise errors.UsageError(f"{origin} is not valid TOML: it is nested too deeply.") from error


def overlay(tree: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return `tree` with `a.b=value` assignments applied; `tree` itself stays as it is.

    The value is read as TOML (`5e-4`, `true`, `[1, 2]`, `"text"`); what is not TOML is a string.

    Raises:
        errors.UsageError: an assignment has no `=`, or a key on its path is not a table.
    """
    result = _copy(tree)
    for assignment in assignments:
        key, equals, raw = assignment.partition("=")
        if not equals or not key.strip():
            raise errors.UsageError(
                f"--set {assignment!r} is not of the form a.b=value.", "--set train.steps=100"
            )
        *parents, leaf = key.strip().split(".")
        table = result
        for name in parents:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise errors.UsageError(f"--set {key.strip()}: {name} is a value, not a table.")
        table[leaf] = _value(raw.strip())
    return result


def assignments(flags: Mapping[str, str | int | float | None]) -> list[str]:
    """`a.b=value` for each flag that was given, so that `overlay` reads its very value."""
    return [f"{key}={_literal(value)}" for key, value in flags.items() if value is not None]


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tree` with the values of `changes` in their places, table by table."""
    result = _copy(tree)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        result[key] = value
    return result


def build(cls: type[T], tree: Mapping[str, Any], path: str = "") -> T:
    """Turn a mapping into the frozen dataclass `cls`, nested dataclasses included.

    Raises:
        errors.UsageError: unknown key (with a suggestion), missing key, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            # "lr" is nearer to base_lr than letters say.
            close = [name for name in fields if key in name.split("_")]
            close = close or difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            names = " or ".join(f"{path}{name}" for name in close)
            hint = f"did you mean {names}?" if close else f"known: {', '.join(fields)}"
            raise errors.UsageError(f"Unknown setting {path}{key}.", hint)
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _convert(hints[name], tree[name], f"{path}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise errors.UsageError(
                f"Setting {path}{name} is required.", f"--set {path}{name}=VALUE"
            )
    return cls(**values)


def dumps(config: Any) -> str:
    """Write a config dataclass as TOML that `build` reads back to an equal object."""
    lines: list[str] = []
    _dump(dataclasses.asdict(config), "", lines)
    return "\n".join(lines).strip() + "\n"


def seconds(variable: str, default_s: float) -> float:
    """The seconds that an environment variable states, or `default_s` where it is not set.

    Raises:
        errors.UsageError: it is no number above 0 and below a million.
    """
    text = os.environ.get(variable, str(default_s))
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise errors.UsageError(f"{variable}={text} is no number of seconds.", f"{variable}=600")
    return found


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise errors.UsageError(
                f"Setting {path} is a table, not {value!r}.", f"--set {path}.NAME=VALUE"
            )
        return build(typing.cast(type[Any], hint), value, f"{path}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise errors.UsageError(
            f"Setting {path} is {value!r}.", f"one of: {', '.join(map(str, arguments))}"
        )
    if origin is types.UnionType or origin is typing.Union:
        plain = [a for a in arguments if a is not type(None)]
        return None if value is None else _convert(plain[0], value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise errors.UsageError(
                f"Setting {path} is a list, not {value!r}.", f"--set {path}='[...]'"
            )
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise errors.UsageError(f"Setting {path} takes {len(arguments)} values: {value!r}.")
        return tuple(
            _convert(arguments[0] if arguments[-1] is Ellipsis else arguments[i], item, path)
            for i, item in enumerate(value)
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise errors.UsageError(f"Setting {path} is {value}.", "a finite number")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise errors.UsageError(f"Setting {path} is {value}.", f"at most {_LARGEST}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise errors.UsageError(
            f"Setting {path} is {value!r}, not of type {hint.__name__}.",
            f"--set {path}={_EXAMPLES[hint]}",
        )
    return value


def _dump(tree: Mapping[str, Any], path: str, lines: list[str]) -> None:
    tables = {k: v for k, v in tree.items() if isinstance(v, Mapping)}
    plain = {k: v for k, v in tree.items() if k not in tables and v is not None}
    if path and plain:
        lines += ["", f"[{path}]"]
    lines += [f"{key} = {_literal(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        _dump(value, f"{path}.{key}" if path else key, lines)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(_ESCAPED.get(c, c) for c in value)
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)
