"""What embeddings take: rows of a chunk by their size, and whether the disk has room for them.

A vector is a few kilobytes, the patch tokens of an image (T x K) hundreds.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from pathfm_cli import errors

CHUNK_BYTES = 64 << 20
"""Most bytes of float32 in a chunk."""
FLOAT_BYTES = 4


def row_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of one embedding of that shape, (K,) or (T, K), as float32."""
    return math.prod(shape) * FLOAT_BYTES


def chunk_rows(shape: tuple[int, ...], most: int) -> int:
    """Rows written together: `most`, halved until they fit `CHUNK_BYTES`, at least one.

    Args:
        shape: of one embedding, (K,) or (T, K).
        most: rows of small embeddings.
    """
    rows = most
    while rows > 1 and rows * row_bytes(shape) > CHUNK_BYTES:
        rows //= 2
    return rows


def check_room(
    out: str | os.PathLike[str], shape: tuple[int, ...], missing: int, rows: int
) -> None:
    """Refuse work that cannot be kept, before it is done.

    Chunks lie beside the file until it is whole, so it takes its size twice.

    Args:
        out: the file to write.
        shape: of one embedding, (K,) or (T, K).
        missing: rows of chunks that are still to be computed.
        rows: all rows.

    Raises:
        errors.PathfmError: the disk has less free.
    """
    folder = Path(os.path.abspath(out)).parent
    while not folder.exists():
        folder = folder.parent
    wanted, free = (missing + rows) * row_bytes(shape), shutil.disk_usage(folder).free
    if wanted > free:
        kind = "patch tokens" if len(shape) > 1 else "embeddings"
        raise errors.PathfmError(
            f"The {kind} of {rows} images, {' x '.join(map(str, shape))} floats each, take up to "
            f"{wanted / 1e9:.1f} GB while they are written; {folder} has {free / 1e9:.1f} GB free.",
            "another -o, or fewer images",
        )
