"""What an index that was killed had read already: finished chunks beside its final name.

A chunk is a table of rows and a tile table, as the final artifact has them. The folder's name
follows the settings but not the files, so that slides may come and go in between; a row counts only
for a file of the same version. docs/artifacts.md says where the folder lies.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from pathfm_cli import artifacts, disk, errors, parquet
from pathfm_cli.data import headers
from pathfm_cli.wsi import tiles


@dataclasses.dataclass(frozen=True, slots=True)
class Journal:
    """The chunks of one unfinished index; the folder exists only while there are any."""

    folder: Path

    @classmethod
    def beside(cls, out: Path, header: artifacts.Header) -> Journal:
        """The journal of the index `out` with the settings of `header`, whatever its files."""
        settings = {k: v for k, v in header.settings.items() if k not in ("files", "metadata")}
        identity = dataclasses.replace(header, settings=settings).id
        return cls(Path(f"{os.path.abspath(out)}.parts-{identity}"))

    def rows(self) -> Iterator[tuple[headers.Row, tiles.TileTable]]:
        """Every row without error, and the tile table that its `levels` point into.

        A damaged chunk is passed over: its slides are read again.
        """
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                table = tiles.TileTable.open(path.with_suffix(".safetensors"))
                frame = parquet.read(path)
            except (errors.InputError, pl.exceptions.PolarsError, OSError):
                continue
            if frame.schema == headers.SCHEMA:
                good = frame.filter(pl.col("error").is_null())
                yield from ((row, table) for row in good.iter_rows(named=True))

    def write(self, rows: Sequence[headers.Row], writer: tiles.Writer) -> tiles.TileTable:
        """Keep a chunk, and return its tile table, which is mapped and takes no memory."""
        number = 1 + max(self._numbers(), default=-1)
        path = self.folder / f"{number:08d}.safetensors"
        with disk.atomic(path) as temporary, temporary.open("wb") as file:
            writer.write(file, f"{number}")
        with disk.atomic(path.with_suffix(".parquet")) as temporary:
            pl.DataFrame(rows, schema=headers.SCHEMA).write_parquet(temporary)
        return tiles.TileTable.open(path)

    def discard(self) -> None:
        """Remove the folder, once the artifact is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _numbers(self) -> Iterator[int]:
        for path in self.folder.glob("*.parquet"):
            if re.fullmatch(r"\d{8}", path.stem):
                yield int(path.stem)
