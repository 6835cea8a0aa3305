"""What a run measured: a JSON line a log step in `metrics.jsonl`, at the end a Parquet table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import disk

_TAIL_BYTES = 4096


class Log:
    """Appends lines; whoever opens it says from which step on lines are to come.

    Lines of later steps, which a killed run wrote after its last checkpoint, are cut off first, so
    no step is ever there twice.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in lines(path) if line["step"] <= step]
        with disk.atomic(path) as temporary:
            temporary.write_text("".join(map(_dumps, kept)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line, visible to readers at once; `values` holds `step`."""
        self._file.write(_dumps(values))
        self._file.flush()

    def close(self) -> None:
        """Bring the lines to the disk and close the file."""
        os.fsync(self._file.fileno())
        self._file.close()


def table(source: Path, target: Path) -> list[dict[str, Any]]:
    """Write the lines as Parquet, atomically, and return them."""
    rows = lines(source)
    with disk.atomic(target) as temporary:
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(temporary, compression="zstd")
    return rows


def last_line(path: Path) -> dict[str, Any]:
    """The last complete line, empty if there is none; reads only the file's end."""
    try:
        if disk.is_special(path):
            return {}
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    try:
        return dict(json.loads(tail[-1])) if tail else {}
    except ValueError:
        return {}


def last_step(path: Path) -> int:
    """Step of the last complete line, 0 if there is none."""
    return int(last_line(path).get("step", 0))


def said(line: Mapping[str, Any]) -> str:
    """A line of metrics in short, for a person who waits: loss, learning rate, speed, stall."""
    words = {
        "loss": "loss {:.3f}",
        "lr": "lr {:.2g}",
        "images_per_s": "{:.4g} img/s",
        "stall": "stall {:.0%}",
    }
    return " ".join(
        text.format(line[name]) for name, text in words.items() if line.get(name) is not None
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a half-written last one is left out, an absent file has none."""
    if not path.exists():
        return []
    texts = disk.read(path).decode().split("\n")[:-1]
    return [json.loads(text) for text in texts if text.endswith("}")]


def _dumps(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values)) + "\n"
