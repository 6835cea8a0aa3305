"""Embeddings of a data set, kept beside it, so that the second run reads them."""

from __future__ import annotations

from pathlib import Path

from pathfm_cli import errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import embed, source

FOLDER = "pathfm-embeddings"


def embeddings(
    data: source.Source,
    encoder: weights.Encoder,
    root: Path,
    reading: embed.Reading,
    progress: embed.Report = lambda done, total: None,
) -> embed.Embedded:
    """The embeddings of `data` by `encoder`: read, resumed or made.

    The file is called by what decides it: the data as they lie, the encoder, the arithmetic.

    Args:
        data: an opened data set.
        encoder: with what.
        root: the data set's folder; the file goes into `pathfm-embeddings` in it.
        reading: as in `embed.embed`.
        progress: as in `embed.embed`.

    Raises:
        errors.PathfmError: as `embed.embed`, or the folder cannot be written.
    """
    content = data.parent.rpartition(":")[2]
    path = root / FOLDER / f"{content}-{encoder.id}-{encoder.precision}.parquet"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.PathfmError(
            f"{path.parent} cannot be made: {error.strerror}.",
            "pathfm embed --task ... -o FILE, and pathfm probe FILE",
        ) from error
    return embed.embed(data, encoder, path, reading, progress=progress)
