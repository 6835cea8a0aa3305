"""The files verbs exchange: kinds, columns with units, ids, atomic writes, checked reads.

A table is Parquet, a set of tensors is safetensors. Either carries one JSON document under the
metadata key `pathfm`: schema, kind, id, parents, settings, and where known rows, failed, metrics,
files. `id` is 12 hex digits of a sha256 over kind, schema, parent ids and settings, so the same
work has the same name wherever it runs. `docs/artifacts.md` explains every column.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import columns, disk, errors, parquet
from pathfm_cli.kinds import KINDS

SCHEMA = "pathfm.artifact/1"
MAX_HEADER_BYTES = 100 << 20
"""Largest safetensors header that is read; the format's own limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What an artifact says of itself.

    `settings` holds JSON values only. `files` names companions relative to the artifact's folder.
    """

    kind: str
    parents: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: int | None = None
    failed: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        """12 hex digits of sha256 over kind, schema, parents and settings."""
        identity = [self.kind, SCHEMA, list(self.parents), self.settings]
        return hashlib.sha256(_json(identity).encode()).hexdigest()[:12]

    def dumps(self) -> str:
        """The JSON document kept in the file."""
        return _json({"schema": SCHEMA, "id": self.id, **dataclasses.asdict(self)})

    def record(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """The handle that flows through a pipe."""
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": self.kind,
            "id": self.id,
            "path": os.path.abspath(path),
        }
        for name in ("rows", "failed", "metrics"):
            value = getattr(self, name)
            if value or (name != "metrics" and value is not None):
                record[name] = value
        return record


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A table read back: rows, header, where it lies, tables attached to it."""

    frame: pl.DataFrame
    header: Header
    path: Path
    attached: Mapping[str, pl.DataFrame]

    def file(self, name: str) -> Path:
        """Absolute path of the companion file `name`.

        Raises:
            errors.InputError: the artifact names no such companion, or it is gone.
        """
        relative = self.header.files.get(name)
        if relative is None:
            raise errors.InputError(f"{self.path} names no {name} file.", "make it again")
        path = Path(os.path.normpath(self.path.parent.absolute() / relative))
        if not path.exists():
            raise errors.InputError(
                f"{self.path} needs {path}, which is gone.", "run `pathfm index` again"
            )
        return path


def write_table(
    path: str | os.PathLike[str],
    frame: pl.DataFrame | pl.LazyFrame,
    header: Header,
    *,
    attached: Mapping[str, pl.DataFrame] | None = None,
    extra: Mapping[str, str] | None = None,
    group_rows: int | None = None,
) -> dict[str, Any]:
    """Write a table atomically and return its record.

    Args:
        path: final name.
        frame: rows; a LazyFrame is streamed, so memory stays constant.
        header: `rows` and `failed` (rows with `error`) are counted here when they are None.
        attached: small tables that travel in the metadata.
        extra: more metadata, such as GeoParquet's `geo`.
        group_rows: rows in a row group, which a reader holds at once; None is polars' choice.

    Raises:
        errors.PathfmError: a column that the kind promises is missing (a bug upstream).
    """
    lazy = frame.lazy()
    names = lazy.collect_schema().names()
    if missing := [c.name for c in KINDS[header.kind].columns if c.name not in names]:
        raise errors.PathfmError(f"{header.kind} without column {', '.join(missing)}.")
    failed = pl.col("error").is_not_null().sum() if "error" in names else pl.lit(0)
    counts = lazy.select(rows=pl.len(), failed=failed).collect()
    header = dataclasses.replace(
        header,
        rows=int(counts["rows"][0]) if header.rows is None else header.rows,
        failed=int(counts["failed"][0]) if header.failed is None else header.failed,
    )
    metadata = {"pathfm": header.dumps(), **(extra or {})}
    for name, table in (attached or {}).items():
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd")
        metadata[f"pathfm.table.{name}"] = base64.b64encode(buffer.getvalue()).decode()
    with disk.atomic(path) as temporary:
        if isinstance(frame, pl.LazyFrame):
            frame.sink_parquet(
                temporary, metadata=metadata, compression="zstd", row_group_size=group_rows
            )
        else:
            frame.write_parquet(
                temporary, metadata=metadata, compression="zstd", row_group_size=group_rows
            )
    return header.record(path)


def read_table(path: str | os.PathLike[str], *kinds: str) -> Table:
    """Read a table of one of `kinds` (any table kind when none is named), checked.

    Raises:
        errors.InputError: missing, truncated, not pathfm's, wrong kind, newer schema, or columns
            missing.
    """
    header, metadata = _peek(Path(path))
    _expect(path, header, kinds)
    try:
        frame = parquet.read(Path(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise errors.InputError(f"{path} cannot be read: {errors.first_line(error)}.") from error
    prefix = "pathfm.table."
    try:
        attached = {
            key.removeprefix(prefix): parquet.read(base64.b64decode(value))
            for key, value in metadata.items()
            if key.startswith(prefix)
        }
    except (ValueError, pl.exceptions.PolarsError, OSError) as error:
        raise errors.InputError(f"{path} has a damaged table in its metadata.") from error
    columns.check(path, frame, KINDS[header.kind])
    for table in (frame, *attached.values()):
        columns.refuse_secrets(path, table)
    return Table(frame, header, Path(path), attached)


def read_header(path: str | os.PathLike[str], *kinds: str) -> Header:
    """Read only the header of a table or safetensors artifact; a run folder is its checkpoint.

    Raises:
        errors.InputError: as `read_table`.
    """
    header, _ = _peek(Path(path))
    _expect(path, header, kinds)
    return header


def resolve(path: str | os.PathLike[str]) -> Path:
    """The file an artifact argument means: a run folder means its `teacher.safetensors`."""
    folder = Path(path)
    return folder / "teacher.safetensors" if folder.is_dir() else folder


def finished(
    path: str | os.PathLike[str], header: Header, *, overwrite: bool = False
) -> dict[str, Any] | None:
    """Rerun = resume: the record if `path` already is this very artifact, None if it is to be made.

    Raises:
        errors.OutputClash: `path` holds something else, and the message names what differs; or,
            whatever `overwrite` says, it is no artifact of pathfm, or one of the inputs.
    """
    hint = "another -o, or --overwrite to replace it"
    old = check_replaceable(path)
    if old is None:
        return None
    if f"{old.kind}:{old.id}" in header.parents:
        raise errors.OutputClash(f"{path} is an input: it would replace itself.", "another -o")
    if overwrite:
        return None
    if old.id == header.id:
        return old.record(resolve(path))
    raise errors.OutputClash(f"{path} was made with {differences(old, header)}.", hint)


def refuse(
    path: str | os.PathLike[str], kind: str, settings: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """As `finished`, before the inputs are known: raise if `path` is surely something else.

    Raises:
        errors.OutputClash: `path` holds no artifact, another kind, or one with other settings.
        errors.Unwritable: nothing can be written there.
    """
    disk.check_place(path)
    if os.path.lexists(path):
        try:
            parents = read_header(path).parents
        except errors.InputError:
            parents = ()
        finished(path, Header(kind=kind, parents=parents, settings=settings), overwrite=overwrite)


def check_replaceable(path: str | os.PathLike[str]) -> Header | None:
    """The header of the artifact that lies at `path`; None if nothing does.

    Raises:
        errors.OutputClash: something else lies there; pathfm never replaces that.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read_header(path)
    except errors.InputError as error:
        raise errors.OutputClash(
            f"{path} exists and is no pathfm artifact.", "another -o, or remove it yourself"
        ) from error


def differences(old: Header, new: Header) -> str:
    """Name what differs between two headers, shortest first, for a clash message."""
    if old.kind != new.kind:
        return f"another kind ({old.kind}, not {new.kind})"
    left, right = (_flatten(json.loads(_json(header.settings))) for header in (old, new))
    changed = [
        f"{key}={left.get(key)} (now {right.get(key)})"
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    ]
    if old.parents != new.parents:
        changed.insert(0, f"other inputs ({', '.join(old.parents)}; now {', '.join(new.parents)})")
    more = f" and {len(changed) - 3} more settings" if len(changed) > 3 else ""
    return "; ".join(changed[:3]) + more


class Parts:
    """Finished chunks of an unfinished table, in the folder `NAME.parts-ID` beside its final name.

    A killed verb leaves them; the same command, which has the same id, goes on from there.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.folder = Path(os.path.abspath(path) + f".parts-{header.id}")

    def done(self) -> set[int]:
        """Numbers of the chunks that are finished."""
        names = (file.name for file in self.folder.glob("*.parquet"))
        return {int(name.partition(".")[0]) for name in names if re.match(r"^\d+\.parquet$", name)}

    def write(self, number: int, frame: pl.DataFrame) -> None:
        """Keep chunk `number`, atomically."""
        with disk.atomic(self.folder / f"{number:08d}.parquet") as temporary:
            frame.write_parquet(temporary, compression="zstd")

    def scan(self) -> pl.LazyFrame:
        """All chunks in order of their number, not loaded yet."""
        return pl.scan_parquet(sorted(self.folder.glob("????????.parquet")))

    def discard(self) -> None:
        """Remove the folder, once the final table is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _peek(path: Path) -> tuple[Header, dict[str, str]]:
    folder, path = path, resolve(path)
    if folder != path and not path.exists():
        raise errors.InputError(
            f"{folder} is a folder, and no run: it holds no {path.name}.",
            f"name the artifact itself: ls {folder}",
        )
    if not path.exists():
        raise errors.InputError(f"{path} does not exist.", f"ls {path.parent}")
    if not path.is_file():
        # A named pipe would be waited for, a device be read without an end.
        raise errors.InputError(f"{path} is no file.", "name the file that a verb has written")
    try:
        metadata = _safetensors_metadata(path) or parquet.metadata(path)
    except (pl.exceptions.PolarsError, OSError, ValueError, RecursionError) as error:
        raise errors.InputError(
            f"{path} is neither Parquet nor safetensors, or it is cut short.",
            "pathfm show FILE tells what a file is",
        ) from error
    if "pathfm" not in metadata:
        raise errors.InputError(f"{path} was not written by pathfm: it has no `pathfm` metadata.")
    return _parse(path, metadata["pathfm"]), metadata


def _parse(path: Path, text: str) -> Header:
    try:
        document = json.loads(text)
        name, _, major = str(document["schema"]).partition("/")
        if name != "pathfm.artifact" or int(major) > int(SCHEMA.partition("/")[2]):
            raise errors.InputError(
                f"{path} has schema {document['schema']}, newer than this pathfm knows.",
                "pip install --upgrade pathfm",
            )
        names = {field.name for field in dataclasses.fields(Header)}
        values = {key: value for key, value in document.items() if key in names}
        header = Header(**{**values, "parents": tuple(document["parents"])})
        _check(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise errors.InputError(f"{path} has damaged `pathfm` metadata.") from error
    return header


def _check(header: Header) -> None:
    """See that each value has its type; a file can say anything.

    Raises:
        TypeError, KeyError, ValueError: one has not, or the kind is unknown.
    """
    if header.kind not in KINDS:
        raise KeyError(header.kind)
    names = [*header.parents, *header.files, *header.files.values()]
    counts = [count for count in (header.rows, header.failed) if count is not None]
    if not all(isinstance(name, str) and "\0" not in name for name in names):
        raise TypeError("names")
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise TypeError("counts")
    if not isinstance(header.settings, dict) or not isinstance(header.metrics, dict):
        raise TypeError("settings")


def _expect(path: str | os.PathLike[str], header: Header, kinds: Sequence[str]) -> None:
    if kinds and header.kind not in kinds:
        wanted = " or ".join(kinds)
        raise errors.InputError(
            f"{path} is of kind {header.kind}; {wanted} is needed here.",
            " or ".join(f"`pathfm {KINDS[kind].verb}` writes {kind}" for kind in kinds),
        )


def _safetensors_metadata(path: Path) -> dict[str, str] | None:
    """The `__metadata__` of a safetensors file, or None if the file is not one."""
    if path.suffix != ".safetensors":
        return None
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= min(MAX_HEADER_BYTES, path.stat().st_size):
            raise ValueError("no safetensors header")
        document = json.loads(file.read(size))
        metadata = document.get("__metadata__", {}) if isinstance(document, dict) else None
        if not isinstance(metadata, dict):
            raise ValueError("damaged safetensors header")
        return metadata or {"": ""}
