"""One slide, indexed and opened."""

from pathlib import Path

from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import pyramid


def opened(path: Path, folder: Path, **options) -> tuple[pyramid.Slide, pyramid.Reader]:
    index.index([str(path)], folder / "s.parquet", **options)
    found = cohort.open_cohort(folder / "s.parquet")
    return found.slides[0], found.reader
