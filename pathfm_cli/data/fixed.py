"""The rows of a `patches` artifact in turn: a fixed set instead of an endless stream."""

from __future__ import annotations

import polars as pl

from pathfm_cli import artifacts, errors
from pathfm_cli.data import draw


class Fixed:
    """The rows of a `patches` artifact, by number modulo their count; replacements are other rows.

    Args:
        table: an opened `patches` artifact.
        seed: for replacements.
        config: `where` and `subset` choose among the slides; the rest is unused.

    Raises:
        errors.InputError: no rows, patches of several sizes, or a slide is not in the file.
        errors.UsageError: the condition cannot be used, or no slide meets it.
    """

    def __init__(
        self, table: artifacts.Table, seed: int, config: draw.SampleConfig | None = None
    ) -> None:
        self.seed = seed
        slides = table.attached["slides"].filter(pl.col("error").is_null())
        numbered = slides.select("slide").with_row_index("position")
        rows = table.frame.join(numbered, on="slide", how="left", maintain_order="left")
        if rows.is_empty() or rows["position"].has_nulls() or rows["size_px"].n_unique() != 1:
            raise errors.InputError(
                f"{table.path} has no patches, several patch sizes, or lacks slides.",
                "make it again: pathfm sample t.parquet -o p.parquet",
            )
        if config is not None:
            names = slides["slide"].filter(draw.taking_part(slides, config))
            rows = rows.filter(pl.col("slide").is_in(names.implode()))
        if rows.is_empty():
            raise errors.UsageError(
                f"No patch of {table.path} lies on a slide that takes part.",
                "a larger --subset, or another --where",
            )
        self.size_px = int(rows["size_px"][0])
        self._slide = rows["position"].to_numpy()
        self._place = rows.select("x_px0", "y_px0", "mpp", "tissue_fraction").to_numpy()

    def __len__(self) -> int:
        return len(self._slide)

    def draw(self, index: int, attempt: int = 0) -> draw.Patch:
        """Row `index`, or, as its replacement, a random one."""
        row = index % len(self)
        if attempt:
            row = int(draw.rng(self.seed, index, draw.PLACE, attempt).integers(len(self)))
        x, y, mpp, share = self._place[row].tolist()
        return draw.Patch(index, int(self._slide[row]), x, y, mpp, self.size_px, share)
