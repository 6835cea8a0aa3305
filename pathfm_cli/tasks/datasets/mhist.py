"""MHIST: colorectal polyps, hyperplastic or sessile serrated (paper IV-A)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import polars as pl

from pathfm_cli import errors
from pathfm_cli.data import metadata
from pathfm_cli.tasks.datasets import base

TABLE, FOLDER = "annotations.csv", "images"
NAME, LABEL, SPLIT = "Image Name", "Majority Vote Label", "Partition"


class Mhist(base.Dataset):
    """annotations.csv names each image, its majority label and its partition."""

    facts = base.Facts(
        name="mhist",
        title="colorectal polyps, 224 px",
        classes=("SSA", "HP"),
        counts={"train": (630, 1545), "test": (360, 617)},
        mpp=2.0,
        licence="Dataset Research Use Agreement",
        licence_url="https://bmirds.github.io/MHIST/",
        origin="bmirds.github.io/MHIST",
        layout=("images/MHIST_*.png", TABLE),
        instructions=(
            "fill in the request form at https://bmirds.github.io/MHIST/#accessing-dataset; the "
            "mail links images.zip and annotations.csv: put annotations.csv into the data folder "
            "and unzip images.zip into images/ beside it"
        ),
        notes="no validation split is published; the test split also chooses the state",
    )

    def scan(self, root: Path) -> base.Scan:
        """As `base.Dataset.scan`."""
        for part in (TABLE, FOLDER):
            if not (root / part).exists():
                raise base.missing(self.facts, root, root / part)
        table = metadata.read(root / TABLE)
        if lost := [name for name in (NAME, LABEL, SPLIT) if name not in table.columns]:
            raise errors.InputError(
                f"{root / TABLE} has no column {lost[0]!r}.", "take the one that came with MHIST"
            )
        listed = table.select(pl.col(NAME, LABEL, SPLIT).cast(pl.String)).sort(SPLIT, NAME)
        present = set(base.listing(root / FOLDER, ".png"))
        for name in listed[NAME]:
            if name != PurePosixPath(name or "").name:
                raise errors.InputError(f"{root / TABLE} names {name!r}, which is no file name.")
        rows = listed.filter(pl.col(NAME).is_in(list(present))).select(
            pl.format(f"{FOLDER}/{{}}", NAME).alias("id"),
            pl.col(LABEL).alias("label"),
            pl.col(SPLIT).alias("split"),
        )
        rows = rows.sort(pl.col("split") == "test", maintain_order=True)
        return base.from_files(root, rows, rows["id"].to_list())
