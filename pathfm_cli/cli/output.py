"""The one place that prints: records and summaries to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pathfm_cli import addresses, errors


class ReaderGone(Exception):
    """Whoever read our stdout has left; the artifact stays (exit 141)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sink:
    """How a verb speaks: `json` forces records, `quiet` bare paths, else the terminal decides."""

    json: bool = False
    quiet: bool = False

    def emit(self, record: Mapping[str, Any], summary: Sequence[str] = (), follow: str = "") -> int:
        """Print a finished artifact's handle (or, on a terminal, its summary) and its next step.

        Args:
            record: see `artifacts.Header.record`.
            summary: lines for a person.
            follow: the command a person would type next.

        Returns:
            The exit code: 0, or 4 when some rows failed.

        Raises:
            ReaderGone: stdout is closed.
        """
        if self.quiet:
            if "path" in record:
                self.line(str(record["path"]))
        elif self.json or not _terminal(sys.stdout):
            self.line(json.dumps(record, separators=(",", ":")))
        else:
            for text in summary or [str(record.get("path", ""))]:
                self.line(_plain(text))
            if follow:
                note(f"next: {follow}")
        return errors.PARTIAL if record.get("failed") else 0

    def plan(self, lines: Mapping[str, Any]) -> int:
        """Print what `--dry-run` found: a JSON line off a terminal, `key: value` lines on one."""
        if self.json or not _terminal(sys.stdout):
            self.line(json.dumps({"schema": "pathfm.plan/1", **lines}, separators=(",", ":")))
        else:
            for key, value in lines.items():
                self.line(_plain(f"{key}: {value}"))
        return 0

    def line(self, text: str) -> None:
        """Print one line to stdout, at once."""
        if sys.stdout is None:
            raise ReaderGone
        try:
            print(text, flush=True)
        except BrokenPipeError as error:
            raise ReaderGone from error


def note(text: str) -> None:
    """Print one line to stderr; a closed stderr is no error."""
    try:
        print(_plain(text), file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        return


def failures(rows: Sequence[tuple[str, str]], total: int, what: str) -> None:
    """Say on stderr how many of `total` rows failed, and name three of them."""
    if rows:
        note(f"pathfm: {len(rows)} of {total} {what} failed:")
        for name, error in rows[:3]:
            note(f"  {name}: {error}")
        if len(rows) > 3:
            note(f"  ... {len(rows) - 3} more, in the column `error`")


def _plain(text: str) -> str:
    """A text for people: no secrets of addresses, and control characters spelled out.

    A file's name must not steer a terminal.
    """
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1]
        for sign in addresses.without_secrets(text)
    )


def _terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()
