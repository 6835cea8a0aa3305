"""Embeddings read back in bounded memory: pathfm's own, and files that others wrote.

Foreign files are Parquet with a float list or array column `embedding` (and `label`, `split`,
`group` where known), `.npy` with one 2-D float array, and `.safetensors` with one 2-D float tensor,
or one of several called `embedding` or `embeddings`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import safetensors

from pathfm_cli import artifacts, errors, parquet

CHUNK_ROWS = 4096
"""Rows read at a time: 32 MB of float64 at K = 1024."""
COLUMNS = ("id", "label", "split", "group", "slide", "fold")
SCORED = (
    "task",
    "partial",
    "model",
    "embedding",
    "image_size_px",
    "mean",
    "std",
    "resize",
    "precision",
    "input",
)
"""Settings of embeddings without which a score does not say what was scored."""
_AGAIN = "make it again: pathfm embed ... -o FILE"
_FORMATS = "Parquet with a float list column `embedding`, .npy or .safetensors"

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Features:
    """An opened file of N vectors of width K; no vector is in memory yet."""

    path: Path
    parent: str
    """What goes into the id of results: `embeddings:ID`, or `file:HASH` for a foreign file."""
    width: int
    """K."""
    table: pl.DataFrame
    """One row a vector: `usable`, and those of `COLUMNS` that the file has."""
    blocks: Callable[[Mask], Iterator[Array]]
    """Chunks of the rows that a mask over the file keeps, in order."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What an `embeddings` artifact says of how it was made; of a foreign file nothing."""
    images: str = ""
    """Id of what was embedded, as `patches:ID`; of a foreign file nothing is known."""

    @property
    def failed(self) -> int:
        """Rows without an embedding; they take part in nothing."""
        return self.table.height - int(self.table["usable"].sum())

    def scored(self) -> dict[str, Any]:
        """What scores record of the embeddings: those of `SCORED` that the file knows."""
        return {name: self.settings[name] for name in SCORED if name in self.settings}

    def incomplete(self) -> tuple[str, ...]:
        """The note that a score on these embeddings compares with no other, where that is so."""
        if not self.settings.get("partial"):
            return ()
        return (
            f"{self.settings.get('task', 'the data set')} is not complete: scores do not compare",
        )

    def rows(self, split: str | None = None) -> Rows:
        """Positions of the usable rows, of one split or of all.

        Raises:
            errors.InputError: a split is asked for and the file has no column `split`.
            errors.UsageError: the file has splits, but not this one.
        """
        keep = self.table["usable"]
        if split is not None:
            keep = keep & (self._split() == self.split_name(split)).fill_null(False)
        return np.flatnonzero(keep.to_numpy()).astype(np.int64)

    def split_name(self, split: str) -> str:
        """What the file calls `split`: `val` may be `valid` or `validation`.

        Raises:
            errors.InputError, errors.UsageError: as `rows`.
        """
        return known_split(self.splits(), split, self.path)

    def splits(self) -> list[str]:
        """Names in the column `split`, sorted.

        Raises:
            errors.InputError: no such column.
        """
        return [str(name) for name in self._split().drop_nulls().unique().sort()]

    def chunks(self, rows: Rows) -> Iterator[Array]:
        """Yield the vectors of `rows` (ascending) as (n, K) arrays of the file's float type.

        Raises:
            errors.InputError: a vector is missing, cut short, NaN or infinite.
        """
        keep = np.zeros(self.table.height, dtype=bool)
        keep[rows] = True
        done = 0
        for block in self.blocks(keep):
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                row = int(rows[done + int(bad.argmax())])
                raise errors.InputError(
                    f"{self.path}: the embedding in row {row} holds NaN or infinity.",
                    "embed again with --precision fp32, or drop the row",
                )
            done += len(block)
            yield block
        if done != len(rows):
            raise errors.InputError(f"{self.path} ends after {done} of {len(rows)} rows.", _AGAIN)

    def matrix(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return the vectors of `rows`, in the order given, as (n, K) float32.

        Raises:
            errors.InputError: as `chunks`.
        """
        order = np.argsort(rows, kind="stable")
        out = np.empty((len(rows), self.width), dtype=np.float32)
        done = 0
        for block in self.chunks(rows[order]):
            out[order[done : done + len(block)]] = block
            done += len(block)
        return out

    def _split(self) -> pl.Series:
        if "split" not in self.table.columns:
            raise errors.InputError(
                f"{self.path} has no column `split`.",
                "pathfm embed --images TABLE with a column split, or folders DIR/train/CLASS",
            )
        return self.table["split"].cast(pl.String)


def aliases(split: str) -> tuple[str, ...]:
    """Names a split goes by; the first that a file has is meant."""
    return ("val", "valid", "validation") if split == "val" else (split,)


def known_split(known: Sequence[str], split: str, where: str | Path) -> str:
    """What `where`, which has the splits `known`, calls `split`.

    Raises:
        errors.UsageError: it has no such split.
    """
    for name in aliases(split):
        if name in known:
            return name
    raise errors.UsageError(
        f"{where} has no split {split!r}.", f"its splits: {', '.join(known) or 'none'}"
    )


def is_run(path: str | Path) -> bool:
    """Whether `path` is a run folder or the weights it exported, which hold no embeddings yet."""
    try:
        return artifacts.read_header(path).kind == "checkpoint"
    except errors.InputError:
        return False


def open_features(path: str | Path) -> Features:
    """Open a file of embeddings; reads what is beside the vectors, not the vectors.

    Raises:
        errors.InputError: missing, damaged, of another kind, or not of a format known here.
    """
    path = Path(path)
    if not path.is_file():
        raise errors.InputError(f"{path} does not exist or is no file.", _FORMATS)
    openers = {".npy": _open_npy, ".safetensors": _open_safetensors}
    return openers.get(path.suffix, _open_parquet)(path)


def _open_parquet(path: Path) -> Features:
    try:
        parquet.check(path)
        with parquet.guard():
            schema = pl.read_parquet_schema(path)
        own = "pathfm" in parquet.metadata(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise errors.InputError(f"{path} is not a file of embeddings.", _FORMATS) from error
    header = artifacts.read_header(path, "embeddings") if own else None
    parent = f"embeddings:{header.id}" if header else _content(path)
    kind = schema.get("embedding")
    refuse_tokens(path, kind)
    if not isinstance(kind, pl.List | pl.Array) or not kind.inner.is_float():
        has = ", ".join(schema)
        raise errors.InputError(f"{path} has no float list `embedding` (it has {has}).", _FORMATS)
    table, width = _describe(path, schema, trust=own and isinstance(kind, pl.Array))

    def blocks(keep: Mask) -> Iterator[Array]:
        return _parquet_blocks(path, pl.Array(kind.inner, width), keep)

    settings, images = (header.settings, _images(header)) if header else ({}, "")
    return Features(path, parent, width, table, blocks, settings, images)


def _images(header: artifacts.Header) -> str:
    """The parent that is no encoder; of tissue, with the grid over it."""
    parent = next((name for name in header.parents if not name.startswith("encoder:")), "")
    if (grid := header.settings.get("grid")) is None:
        return parent
    return f"{parent} {json.dumps(grid, sort_keys=True, separators=(',', ':'))}"


def refuse_tokens(path: Path, kind: pl.DataType | None) -> None:
    """Refuse matrices where a vector an image is needed.

    Args:
        path: for the message.
        kind: type of the column `embedding`.

    Raises:
        errors.InputError: each image has several vectors, as its patch tokens.
    """
    if isinstance(kind, pl.List | pl.Array) and isinstance(kind.inner, pl.List | pl.Array):
        shape = f" ({' x '.join(map(str, kind.shape))})" if isinstance(kind, pl.Array) else ""
        raise errors.InputError(
            f"{path} holds patch tokens, a matrix an image{shape}; one vector an image is needed.",
            "embed again with --embedding cls or cls+mean",
        )


def _describe(
    path: Path, schema: Mapping[str, pl.DataType], *, trust: bool
) -> tuple[pl.DataFrame, int]:
    """Read the columns beside the vectors, and K.

    In a file of ours a vector is missing where `error` says so; in another one each is looked at.
    """
    usable = pl.col("error").is_null() if "error" in schema else pl.lit(True)
    columns = [pl.col(name) for name in COLUMNS if name in schema]
    scan = pl.scan_parquet(path)
    kind = schema["embedding"]
    embedding = pl.col("embedding")
    if trust:
        known = pl.lit(kind.size, pl.UInt32)  # type: ignore[attr-defined]
    elif isinstance(kind, pl.Array):
        known = pl.when(embedding.is_not_null()).then(pl.lit(kind.size, pl.UInt32))
    else:
        known = embedding.list.len()
    try:
        with parquet.guard():
            table = scan.select(known.alias("_width"), usable.alias("usable"), *columns).collect(
                engine="streaming"
            )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise errors.InputError(f"{path} cannot be read: it is damaged.", _AGAIN) from error
    table = table.with_columns(pl.col("usable") & pl.col("_width").is_not_null())
    widths = table.filter("usable")["_width"].unique().sort().to_list()
    if not widths:
        raise errors.InputError(f"{path} has no row with an embedding.", _AGAIN)
    if len(widths) > 1 or widths[0] == 0:
        found = ", ".join(map(str, widths[:3]))
        raise errors.InputError(
            f"{path} needs vectors of one length; found: {found}.", "one file for each encoder"
        )
    return table.drop("_width"), int(widths[0])


def _parquet_blocks(path: Path, dtype: pl.Array, keep: Mask) -> Iterator[Array]:
    scan = pl.scan_parquet(path).select("embedding")
    start = 0
    try:
        batches = scan.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True)
        while True:
            with parquet.guard():
                batch = next(batches, None)
            if batch is None:
                return
            wanted = keep[start : start + batch.height]
            start += batch.height
            if not wanted.any():
                continue
            column = batch["embedding"]
            if not wanted.all():
                column = column.filter(pl.Series(wanted))
            yield from _arrays(path, column.cast(dtype))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise errors.InputError(f"{path} cannot be read: it is damaged.", _AGAIN) from error


def _arrays(path: Path, column: pl.Series) -> Iterator[Array]:
    if column.null_count():
        raise errors.InputError(
            f"{path} has rows without an embedding and without an error.", _AGAIN
        )
    for start in range(0, len(column), CHUNK_ROWS):
        yield column[start : start + CHUNK_ROWS].to_numpy()


def _open_npy(path: Path) -> Features:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy parses the header as Python and raises what that provokes
        raise errors.InputError(f"{path} is damaged or no plain .npy array.", _FORMATS) from error
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise errors.InputError(
            f"{path} holds {array.dtype} of shape {array.shape}; (N, K) floats are needed.",
            "numpy.save(FILE, array.astype('float32'))",
        )
    return _matrix_features(path, array.shape, lambda start, stop: np.asarray(array[start:stop]))


def _open_safetensors(path: Path) -> Features:
    try:
        with safetensors.safe_open(path, "np") as file:
            shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            flat = {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in shapes.items()
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise errors.InputError(f"{path} is damaged or no safetensors file.", _FORMATS) from error
    name = _tensor_name(path, flat)
    dtype, shape = flat[name]
    # numpy has no bfloat16; torch, slow to import, reads only those files.
    framework = "pt" if dtype == "BF16" else "np"

    def read(start: int, stop: int) -> Array:
        with safetensors.safe_open(path, framework) as file:
            part: Any = file.get_slice(name)[start:stop]
        block: Array = part if framework == "np" else part.float().numpy()
        return block

    return _matrix_features(path, shape, read)


def _tensor_name(path: Path, flat: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    matrices = [
        name
        for name, (dtype, shape) in flat.items()
        if dtype in ("F64", "F32", "F16", "BF16") and len(shape) == 2 and 0 not in shape
    ]
    named = [name for name in matrices if name in ("embedding", "embeddings")]
    for names in (named, matrices):
        if len(names) == 1:
            return names[0]
    raise errors.InputError(
        f"{path} holds {len(matrices)} float matrices; one, or one called embedding, is needed.",
        "an encoder's weights? pathfm embed --model FILE makes embeddings",
    )


def _matrix_features(
    path: Path, shape: tuple[int, ...], read: Callable[[int, int], Array]
) -> Features:
    count, width = shape

    def blocks(keep: Mask) -> Iterator[Array]:
        for start in range(0, count, CHUNK_ROWS):
            wanted = keep[start : start + CHUNK_ROWS]
            if wanted.any():
                block = read(start, min(count, start + CHUNK_ROWS))
                yield block if wanted.all() else block[wanted]

    table = pl.DataFrame({"usable": np.ones(count, dtype=bool)})
    return Features(path, _content(path), width, table, blocks)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return f"file:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
