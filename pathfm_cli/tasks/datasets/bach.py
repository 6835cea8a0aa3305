"""BACH: breast histology, four classes, split by patient (paper IV-A, Supplementary Data V)."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from pathfm_cli.tasks.datasets import base

PHOTOS = "ICIAR2018_BACH_Challenge/Photos"
TEST = {
    "Benign": (range(42, 60), range(61, 91)),
    "InSitu": (range(40, 70),),
    "Invasive": (range(41, 59), range(61, 74)),
    "Normal": (range(46, 69),),
}
"""Numbers in the file names of the test images; no patient is in both parts."""

_NUMBER = re.compile(r"^(?:b|is|iv|n)(\d{3})\.tif$", re.IGNORECASE)


class Bach(base.Dataset):
    """Photos/CLASS/*.tif; the number in a file's name says its split."""

    facts = base.Facts(
        name="bach",
        title="breast cancer histology, 2048 x 1536 px",
        classes=("Benign", "InSitu", "Invasive", "Normal"),
        counts={"train": (52, 70, 69, 77), "test": (48, 30, 31, 23)},
        mpp=0.42,
        licence="CC BY-NC-ND 4.0",
        licence_url="https://creativecommons.org/licenses/by-nc-nd/4.0/legalcode",
        origin="zenodo record 3632035",
        layout=(f"{PHOTOS}/{{Benign,InSitu,Invasive,Normal}}/*.tif",),
        instructions="unzip ICIAR2018_BACH_Challenge.zip into the data folder",
        resources=(
            base.Resource(
                url="https://zenodo.org/records/3632035/files/ICIAR2018_BACH_Challenge.zip",
                makes=PHOTOS,
                images=400,
                keep=f"{PHOTOS}/",
                max_unpacked_bytes=8 << 30,
            ),
        ),
        notes="no validation split is published; the test split also chooses the state",
    )

    def scan(self, root: Path) -> base.Scan:
        """As `base.Dataset.scan`."""
        if not (root / PHOTOS).is_dir():
            raise base.missing(self.facts, root, root / PHOTOS)
        found = [
            (f"{PHOTOS}/{label}/{name}", label, split_of(label, int(match[1])))
            for label in self.facts.classes
            for name in base.listing(root / PHOTOS / label, ".tif")
            if (match := _NUMBER.match(name))
        ]
        rows = pl.DataFrame(found, schema=["id", "label", "split"], orient="row")
        rows = rows.sort(pl.col("split") == "test", maintain_order=True)
        return base.from_files(root, rows, rows["id"].to_list())


def split_of(label: str, number: int) -> str:
    """The split of the image of that number."""
    return "test" if any(number in numbers for numbers in TEST[label]) else "train"
