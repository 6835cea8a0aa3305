"""CoNSeP: nuclei of colorectal tissue, four classes and background, for `segment` (paper IV-A)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pathfm_cli import errors
from pathfm_cli.tasks import masks, typemap
from pathfm_cli.tasks.datasets import base

FOLDERS = {"train": "Train", "test": "Test"}


class Consep(base.Dataset):
    """SPLIT/Images/*.png with SPLIT/Labels/*.mat; its images have no label of their own."""

    facts = base.Facts(
        name="consep",
        title="nuclei of colorectal tissue, 1000 px, segmentation",
        classes=typemap.CLASSES,
        counts={"train": 27, "test": 14},
        mpp=0.25,
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        origin="warwick.ac.uk/TIA/data/hovernet",
        layout=("Train/Images/*.png", "Train/Labels/*.mat", "Test/Images/*.png"),
        instructions=(
            "log in at https://warwick.ac.uk/TIA/data/hovernet/ (where that is closed, ask the "
            "authors: github.com/vqdang/hover_net, issue 267), and put the folders Train and Test "
            "of consep.zip into the data folder"
        ),
    )

    def scan(self, root: Path) -> base.Scan:
        """As `base.Dataset.scan`; every image needs its label map."""
        found = []
        for split, folder in FOLDERS.items():
            for part in ("Images", "Labels"):
                if not (root / folder / part).is_dir():
                    raise base.missing(self.facts, root, root / folder / part)
            for name in base.listing(root / folder / "Images", ".png"):
                label = root / folder / "Labels" / f"{Path(name).stem}.mat"
                if not label.is_file():
                    raise errors.InputError(
                        f"{root / folder / 'Images' / name} has no label map {label.name}.",
                        self.facts.instructions,
                    )
                found.append((f"{folder}/Images/{name}", None, split))
        schema = {"id": pl.String, "label": pl.String, "split": pl.String}
        rows = pl.DataFrame(found, schema=schema, orient="row")
        return base.from_files(root, rows, rows["id"].to_list())

    def items(
        self, root: Path, *, partial: bool = False
    ) -> tuple[list[masks.Item], tuple[str, ...]]:
        """Images and label maps for `segment`, and what a person should know of them.

        Raises:
            errors.InputError: as `open`.
        """
        opened = self.open(root, partial=partial)
        place = self.place(root)
        found = [
            masks.Item(
                id=Path(row["id"]).stem,
                image=place / row["id"],
                label=place / row["id"].replace("/Images/", "/Labels/").replace(".png", ".mat"),
                split=row["split"],
            )
            for row in opened.rows.iter_rows(named=True)
        ]
        return found, opened.notes
