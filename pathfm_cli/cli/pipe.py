"""The pipe protocol: a finished artifact's handle flows as one JSON line; see STYLE of the docs.

An argument means stdin is never touched. `-`, or no argument while stdin is a pipe or a file,
reads to the end. A line that is not JSON is a bare path.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pathfm_cli import errors
from pathfm_cli.cli import output

EXAMPLE = "pathfm index slides/ -o s.parquet | pathfm mask -o t.parquet"
PATIENCE_S = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """One input of a verb: the kinds that fit it.

    `foreign` also takes files that pathfm did not write, `required` whether the verb fails
    without it.
    """

    kinds: tuple[str, ...]
    required: bool = True
    foreign: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Handle:
    """A line of the pipe: a path, and the kind if the writer said it."""

    path: str
    kind: str | None = None


def bind(
    verb: str,
    arguments: Sequence[str],
    slots: Mapping[str, Slot],
    given: Mapping[str, str | os.PathLike[str] | None] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Path]:
    """Find the file for every slot, from flags first, then arguments, then stdin.

    Args:
        verb: for messages.
        arguments: positional arguments.
        slots: what the verb takes.
        given: values of flags that fill a slot.
        out: what the verb will write.

    Returns:
        Slot name to path; slots that are not required may be absent.

    Raises:
        errors.UsageError: nothing to read from, or two inputs for one slot.
        errors.InputError: the pipe ended without a usable handle, or an argument does not fit.
        errors.OutputClash: an input is the output, or lies in it.
    """
    bound = {name: Path(value) for name, value in (given or {}).items() if value is not None}
    missing = [name for name, slot in slots.items() if slot.required and name not in bound]
    explicit = [Handle(text) for text in arguments if text != "-"]
    piped = []
    if "-" in arguments or (not explicit and missing):
        wanted = " or ".join(kind for name in missing for kind in slots[name].kinds)
        piped = read_stdin(verb, wanted)
    for handle in explicit:
        name = _slot(handle, slots, bound, strict=True)
        _put(bound, name, handle)
    flags = set(bound)
    for handle in piped:
        name = _slot(handle, slots, {}, strict=False)
        if name and name not in flags:
            _put(bound, name, handle)
    for name, slot in slots.items():
        if slot.required and name not in bound:
            kinds = " or ".join(slot.kinds)
            if piped or "-" in arguments or not explicit:
                raise errors.InputError(
                    f"stdin ended without {_article(kinds)} artifact.",
                    "did the command on the left fail?",
                )
            raise errors.UsageError(f"{verb} needs {_article(kinds)} artifact.", EXAMPLE)
    for path in bound.values():
        if out is not None and path.resolve().is_relative_to(Path(out).resolve()):
            raise errors.OutputClash(
                f"{path} is an input, and {out} would replace it.", "another -o"
            )
    return bound


def lines(verb: str, arguments: Sequence[str], wanted: str) -> list[Handle]:
    """Arguments as handles, or, with `-` or none, what stdin lists.

    Raises:
        errors.UsageError: no argument, and stdin is a terminal or /dev/null.
        errors.InputError: stdin ended empty.
    """
    handles = [Handle(text) for text in arguments if text != "-"]
    if "-" in arguments or not handles:
        piped = read_stdin(verb, wanted)
        if not piped and not handles:
            raise errors.InputError(
                f"stdin ended without {wanted}.", "did the command on the left fail?"
            )
        handles += piped
    return handles


def read_stdin(verb: str, wanted: str) -> list[Handle]:
    """Read stdin to its end.

    Raises:
        errors.UsageError: stdin is a terminal, /dev/null or closed.
        errors.InputError: a record of a later schema, or one that is damaged.
    """
    if not has_stdin():
        raise errors.UsageError(f"{verb} needs {wanted}: name it, or pipe it in.", EXAMPLE)
    if not select.select([sys.stdin], [], [], PATIENCE_S)[0]:
        output.note(f"pathfm {verb}: waiting for {wanted} on stdin ...")
    data = sys.stdin.buffer.read()
    if b"\0" in data:
        raise errors.InputError(
            "stdin is not text: a record or a path per line is expected.",
            f"name the file instead: pathfm {verb} FILE",
        )
    texts = os.fsdecode(data).splitlines()
    return [handle for text in texts if text.strip() and (handle := _parse(text.strip()))]


def has_stdin() -> bool:
    """Whether stdin is a pipe, a socket or a file (not a terminal, /dev/null or closed)."""
    if sys.stdin is None:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _parse(text: str) -> Handle | None:
    if not text.startswith("{"):
        return Handle(text)
    try:
        record = json.loads(text)
    except ValueError as error:
        raise errors.InputError(
            f"stdin holds a damaged record: {text[:80]!r}.", "did the command on the left fail?"
        ) from error
    schema = str(record.get("schema", ""))
    name, _, major = schema.partition("/")
    if name != "pathfm.artifact":
        return None
    if major != "1":
        raise errors.InputError(
            f"stdin holds a record of schema {schema}, newer than this pathfm knows.",
            "pip install --upgrade pathfm",
        )
    if not isinstance(record.get("path"), str) or not isinstance(record.get("kind"), str):
        return None
    return Handle(record["path"], record["kind"])


def _slot(
    handle: Handle, slots: Mapping[str, Slot], bound: Mapping[str, Path], *, strict: bool
) -> str | None:
    from pathfm_cli import artifacts

    kind = handle.kind
    if kind is None:
        try:
            kind = artifacts.read_header(handle.path).kind
        except errors.InputError:
            foreign = [name for name, slot in slots.items() if slot.foreign and name not in bound]
            if not foreign or not Path(handle.path).is_file():
                raise
            return foreign[0]
    for name, slot in slots.items():
        if kind in slot.kinds:
            return name
    if strict:
        artifacts.read_header(handle.path, *(k for slot in slots.values() for k in slot.kinds))
    return None


def _article(kinds: str) -> str:
    return f"an {kinds}" if kinds[0] in "aeio" else f"a {kinds}"


def _put(bound: dict[str, Path], name: str | None, handle: Handle) -> None:
    if name is None:
        return
    if name in bound and bound[name] != Path(handle.path):
        raise errors.UsageError(
            f"Two inputs where one is taken: {bound[name]} and {handle.path}.", "name just one"
        )
    bound[name] = Path(handle.path)
