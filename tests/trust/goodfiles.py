"""One good artifact of every kind, for the bad ones to be made of."""

import dataclasses
from pathlib import Path

import badfiles
import polars as pl
import shapely

from pathfm_cli import artifacts
from pathfm_cli.data import cohort, draw, index, sample


@dataclasses.dataclass(frozen=True)
class Good:
    """Paths of good artifacts."""

    slide: Path
    slides: Path
    tiles: Path
    tissue: Path
    patches: Path
    embeddings: Path
    checkpoint: Path
    scores: Path

    def of_kind(self, kind: str) -> Path:
        found: Path = getattr(self, kind)
        return found


def make(folder: Path) -> Good:
    """Make them in an empty folder."""
    slide = badfiles.pyramid(folder)
    slides, tissue, patches = (folder / f"{name}.parquet" for name in ("s", "t", "p"))
    index.index([str(slide)], slides)
    table = artifacts.read_table(slides)
    outline = table.frame.with_columns(
        geometry=pl.lit(shapely.to_wkb(shapely.MultiPolygon([shapely.box(0, 0, 256, 256)]))),
        tissue_area_mm2=pl.lit(0.004),
        tissue_method=pl.lit("otsu"),
        tissue_doubt=pl.lit(None, pl.Float64),
    )
    files = cohort.companions(table, tissue)
    parents = (f"slides:{table.header.id}",)
    artifacts.write_table(
        tissue, outline, artifacts.Header(kind="tissue", parents=parents, files=files)
    )
    config = draw.SampleConfig(mpp=(0.25,), size_px=64)
    sample.sample(tissue, patches, config, sample.Random(n=4))
    embeddings = folder / "e.parquet"
    vectors = pl.Series([[1.0, 2], [3, 4], [5, 7], [7, 1]], dtype=pl.Array(pl.Float32, 2))
    frame = pl.DataFrame({"id": ["a", "b", "c", "d"], "embedding": vectors})
    frame = frame.with_columns(error=pl.lit(None, pl.String))
    artifacts.write_table(embeddings, frame, artifacts.Header(kind="embeddings"))
    header = artifacts.Header(kind="checkpoint").dumps()
    checkpoint = badfiles.safetensors({"__metadata__": {"pathfm": header}})(folder)
    scores = folder / "scores.parquet"
    columns = artifacts.KINDS["scores"].columns
    rows = {column.name: pl.Series([], dtype=getattr(pl, column.dtype)) for column in columns}
    artifacts.write_table(scores, pl.DataFrame(rows), artifacts.Header(kind="scores"))
    tiles = artifacts.read_table(slides).file("tiles")
    return Good(slide, slides, tiles, tissue, patches, embeddings, checkpoint, scores)
