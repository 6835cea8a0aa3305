"""Folders and tables of image files as a `source.Source`, and their safe decoding."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
from PIL import Image as pillow
from PIL import UnidentifiedImageError

from pathfm_cli import disk, errors
from pathfm_cli.data import metadata
from pathfm_cli.tasks import source

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".jp2")
TABLES = (".csv", ".tsv", ".parquet")
FILE_COLUMNS = ("path", "file", "image")
SPLITS = ("train", "training", "val", "valid", "validation", "test")
"""Folder names that are read as splits; any other first folder is a class."""
MAX_IMAGE_PX = 64_000_000
"""Largest image that is decoded: 192 MB of RGB."""
LARGE_PX = 16_000_000
"""Larger images are decoded one after the other: for a moment each takes three times its RGB."""
MAX_ASPECT = 16
"""Longest side in shortest sides; beyond it the resize would grow without bound."""

_one_by_one = threading.Lock()
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000")
_PLAIN = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_LAYOUTS = "expected CLASS/*, SPLIT/CLASS/*, SPLIT/* or plain files"

# Sizes are checked here, and more strictly; other oddities of a file end in its error row.
warnings.filterwarnings("ignore", module="PIL")


def open_images(path: str | Path, columns: source.Columns = source.SAME) -> source.Source:
    """Images from a folder or a table.

    A folder holds `CLASS/*`, `SPLIT/CLASS/*`, `SPLIT/*` or plain files, where SPLIT is one of
    `SPLITS`; the rows are sorted by path. A table (CSV, TSV, Parquet) has one column `path`, `file`
    or `image`, relative to the table, and may have `id`; its order stays.

    Args:
        path: folder or table.
        columns: which columns of a table say what an image is.

    Raises:
        errors.InputError: it does not exist, cannot be read or holds no images.
        errors.UsageError: the folder's layout is ambiguous, or the table's columns do not fit.
    """
    path = Path(path)
    if path.is_dir():
        if chosen := [name for name in source.FACTS if getattr(columns, name)]:
            raise errors.UsageError(
                f"--{chosen[0]} names a column of a table; {path} is a folder.",
                f"leave it out, or list the images in a table: --images {path}/labels.csv",
            )
        return _folder(path)
    if path.suffix.lower() not in TABLES:
        kind = "neither a folder nor a table" if path.exists() else "not there"
        raise errors.InputError(
            f"{path} is {kind}.", "--images takes a folder, .csv, .tsv or .parquet"
        )
    return _table(path, columns)


def decode(path: str | Path) -> source.Image:
    """Read an image file as (H, W, 3) uint8.

    Grey, palette and CMYK become RGB, transparency is laid over white. The pixels are as stored:
    no EXIF rotation, no colour profile; of several pages the first.

    Raises:
        errors.SlideError: missing, damaged, too large, or not of 8 bits a channel.
    """
    if disk.is_special(path):
        raise errors.SlideError("it is no file")
    try:
        with pillow.open(path, formats=_FORMATS) as image:
            _check_size(image.width, image.height)
            large = image.width * image.height > LARGE_PX
            with _one_by_one if large else contextlib.nullcontext():
                return np.array(_rgb(image))
    except errors.SlideError:
        raise
    except FileNotFoundError as error:
        raise errors.SlideError("the file does not exist") from error
    except UnidentifiedImageError as error:
        raise errors.SlideError("the file is no image that can be read") from error
    except Exception as error:  # the decoders meet hostile bytes and raise whatever they provoke
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise errors.SlideError(f"the image cannot be decoded: {reason}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PX:
        raise errors.SlideError(
            f"the image is {width} x {height} px, more than {MAX_IMAGE_PX // 1_000_000} million"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise errors.SlideError(
            f"the image is {width} x {height} px, longer than {MAX_ASPECT} times its width"
        )


def _rgb(image: pillow.Image) -> pillow.Image:
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        over = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", over.size, "white"), over).convert("RGB")
    if image.mode not in _PLAIN:
        raise errors.SlideError(f"the image has the mode {image.mode}, not 8 bits a channel")
    return image if image.mode == "RGB" else image.convert("RGB")


def _folder(folder: Path) -> source.Source:
    found = sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    )
    files = [name for name in found if name.lower().endswith(SUFFIXES)]
    if not files:
        raise errors.InputError(
            f"{folder} holds no images.", f"looked for {' '.join(SUFFIXES)} in it and below"
        )
    layout = _layout(folder, files)
    parts = [PurePosixPath(name).parts for name in files]
    rows = pl.DataFrame({"id": files}).with_columns(
        pl.Series(name, [part[layout.index(name)] for part in parts])
        for name in ("label", "split")
        if name in layout
    )
    left = [name for name in found if not name.lower().endswith(SUFFIXES)]
    notes = [f"read {folder} as {'/'.join((*layout, 'image')).replace('label', 'class')}"]
    if left:
        more = ", ..." if len(left) > 3 else ""
        notes.append(f"{len(left)} files are no images: {', '.join(left[:3])}{more}")
    return _source(folder, rows, files, {"layout": "/".join((*layout, "image"))}, notes)


def _layout(folder: Path, files: Sequence[str]) -> tuple[str, ...]:
    """What the folders above the images mean, if there is only one way to read them."""
    depths = {name.count("/") for name in files}
    if len(depths) > 1:
        shallow, deep = (
            min(files, key=lambda n: n.count("/")),
            max(files, key=lambda n: n.count("/")),
        )
        raise _ambiguous(folder, f"holds both {shallow} and {deep}")
    depth = depths.pop()
    if depth == 0:
        return ()
    first = sorted({name.split("/")[0] for name in files})
    splits = [name for name in first if name.lower() in SPLITS]
    others = [name for name in first if name not in splits]
    if splits and others:
        raise _ambiguous(folder, f"mixes the split {splits[0]} with {others[0]}")
    if depth == 1:
        return ("split",) if splits else ("label",)
    if depth == 2 and splits:
        return ("split", "label")
    what = "is no known split" if depth == 2 else f"is {depth} folders above its images"
    raise _ambiguous(folder, f"has {first[0]}, which {what}")


def _ambiguous(folder: Path, why: str) -> errors.UsageError:
    return errors.UsageError(
        f"The layout of {folder} is ambiguous: it {why}.",
        f"{_LAYOUTS} (SPLIT: {', '.join(SPLITS)}); or list path,label,split in a table: "
        f"--images {folder}/labels.csv",
    )


def _table(path: Path, columns: source.Columns) -> source.Source:
    table = metadata.read(path)
    present = [name for name in FILE_COLUMNS if name in table.columns]
    if len(present) != 1:
        raise errors.UsageError(
            f"{path} needs one column path, file or image, not {' and '.join(present) or 'none'}.",
            f"its columns: {', '.join(table.columns)}",
        )
    if table.is_empty():
        raise errors.InputError(f"{path} lists no images.", "a row an image is expected")
    chosen = columns.pick(table.columns, path)
    named = "id" if "id" in table.columns else present[0]
    rows = table.select(
        pl.col(named).cast(pl.String).alias("id"),
        *(pl.col(column).cast(pl.String).alias(name) for name, column in chosen.items()),
    )
    files = table[present[0]].cast(pl.String)
    if rows["id"].null_count() or files.null_count():
        raise errors.UsageError(f"{path} has a row without {named}.", "each row names one image")
    if twice := rows["id"].filter(rows["id"].is_duplicated()).to_list():
        raise errors.UsageError(
            f"{path} has two rows called {twice[0]}.", "add a column `id` with a name for each row"
        )
    for name in files:
        metadata.place(path, name)
    return _source(path.parent, rows, files.to_list(), {"columns": chosen}, [])


def _source(
    start: Path,
    rows: pl.DataFrame,
    files: Sequence[str],
    settings: dict[str, Any],
    notes: Sequence[str],
) -> source.Source:
    paths = [os.path.join(start, os.path.expanduser(name)) for name in files]
    names = source.classes(rows)
    if names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        notes = [*notes, f"{len(names)} classes: {shown}"]
    return source.Source(
        rows=rows,
        read=lambda row: decode(paths[row]),
        parent=f"images:{_digest(rows, files, paths)}",
        settings={**settings, "classes": names},
        what="images",
        notes=tuple(notes),
    )


def _digest(rows: pl.DataFrame, files: Sequence[str], paths: Sequence[str]) -> str:
    """What identifies the images: names, sizes, times of change, and what the rows say of them."""
    digest = hashlib.sha256()
    for row, name, path in zip(rows.iter_rows(), files, paths, strict=True):
        try:
            status = os.stat(path)
            version = (status.st_size, status.st_mtime_ns)
        except OSError:
            version = (0, 0)
        digest.update(f"{row!r} {name!r} {version}\n".encode())
    return digest.hexdigest()[:12]
