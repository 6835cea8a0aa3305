"""CRC: nine tissue classes of colorectal cancer, colour-normalised (paper IV-A)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pathfm_cli.tasks.datasets import base

FOLDERS = {"train": "NCT-CRC-HE-100K", "test": "CRC-VAL-HE-7K"}
_FILES = "https://zenodo.org/records/1214456/files"


class Crc(base.Dataset):
    """One folder a split, one folder a class."""

    facts = base.Facts(
        name="crc",
        title="colorectal tissue, 224 px",
        classes=("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"),
        counts={
            "train": (10407, 10566, 11512, 11557, 8896, 13536, 8763, 10446, 14317),
            "test": (1338, 847, 339, 634, 1035, 592, 741, 421, 1233),
        },
        mpp=0.5,
        licence="CC BY 4.0",
        licence_url="https://creativecommons.org/licenses/by/4.0/legalcode",
        origin="zenodo record 1214456",
        layout=("NCT-CRC-HE-100K/CLASS/*.tif", "CRC-VAL-HE-7K/CLASS/*.tif"),
        instructions="unzip NCT-CRC-HE-100K.zip and CRC-VAL-HE-7K.zip into the data folder",
        resources=(
            base.Resource(
                url=f"{_FILES}/NCT-CRC-HE-100K.zip",
                makes=FOLDERS["train"],
                images=100_000,
                keep=f"{FOLDERS['train']}/",
                md5="035777cf327776a71a05c95da6d6325f",
                max_unpacked_bytes=20 << 30,
            ),
            base.Resource(
                url=f"{_FILES}/CRC-VAL-HE-7K.zip",
                makes=FOLDERS["test"],
                images=7_180,
                keep=f"{FOLDERS['test']}/",
                md5="2fd1651b4f94ebd818ebf90ad2b6ce06",
                max_unpacked_bytes=2 << 30,
            ),
        ),
        notes="no validation split is published; the test split also chooses the state",
    )

    def scan(self, root: Path) -> base.Scan:
        """As `base.Dataset.scan`."""
        for folder in FOLDERS.values():
            if not (root / folder).is_dir():
                raise base.missing(self.facts, root, root / folder)
        found = [
            (f"{folder}/{label}/{name}", label, split)
            for split, folder in FOLDERS.items()
            for label in self.facts.classes
            for name in base.listing(root / folder / label, ".tif")
        ]
        rows = pl.DataFrame(found, schema=["id", "label", "split"], orient="row")
        return base.from_files(root, rows, rows["id"].to_list())
