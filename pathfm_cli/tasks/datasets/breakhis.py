"""BreakHis: breast tumours, the four classes with enough patients, at 40x."""

from __future__ import annotations

import os
import re
from pathlib import Path

import polars as pl

from pathfm_cli.tasks.datasets import base

FOLDER = "BreaKHis_v1/histology_slides/breast"
MAGNIFICATION = "40"
TEST_PATIENTS = frozenset(
    "18842D 19979 15275 15792 16875 3909 5287 16716 2773 5695 16184CD 23060CD 21998CD "
    "21998EF".split()
)
"""Patients of the test part: the validation patients of kaiko-eva 0.4."""

_NAME = re.compile(r"^SOB_[BM]_([A-Z]+)-\d+-([0-9A-Z]+)-(\d+)-\d+\.png$")


class Breakhis(base.Dataset):
    """TUMOUR/SOB/SUBTYPE/SLIDE/40X/*.png; the file's name tells class and patient."""

    facts = base.Facts(
        name="breakhis",
        title="breast tumours at 40x, 700 x 460 px",
        classes=("TA", "MC", "F", "DC"),
        counts={"train": 1132, "test": 339},
        mpp=0.25,
        licence="CC BY 4.0",
        licence_url="https://creativecommons.org/licenses/by/4.0/legalcode",
        origin="BreaKHis_v1, web.inf.ufpr.br/vri",
        layout=(f"{FOLDER}/{{benign,malignant}}/SOB/SUBTYPE/SLIDE/40X/*.png",),
        instructions=(
            "get BreaKHis_v1.tar.gz from https://web.inf.ufpr.br/vri/databases/breast-cancer-"
            "histopathological-database-breakhis/ and unpack it into the data folder"
        ),
        notes=(
            "the split is kaiko-eva 0.4's, by patient, of 4 of the 8 classes; its test split also "
            "chooses the state"
        ),
    )

    def scan(self, root: Path) -> base.Scan:
        """As `base.Dataset.scan`."""
        if not (root / FOLDER).is_dir():
            raise base.missing(self.facts, root, root / FOLDER)
        found = []
        for folder, _, names in os.walk(root / FOLDER):
            for name in names:
                match = _NAME.match(name)
                if match and match[3] == MAGNIFICATION and match[1] in self.facts.classes:
                    path = Path(folder, name).relative_to(root).as_posix()
                    split = "test" if match[2] in TEST_PATIENTS else "train"
                    found.append((path, match[1], split, match[2]))
        rows = pl.DataFrame(
            sorted(found),
            schema={name: pl.String for name in ("id", "label", "split", "group")},
            orient="row",
        )
        rows = rows.sort(pl.col("split") == "test", maintain_order=True)
        return base.from_files(root, rows, rows["id"].to_list())
