"""Tissue artifacts: of the slide that ships with the package, and of polygons spelled out."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import shapely
from tissues import DEMO_SLIDE, MakeTissue

from pathfm_cli import artifacts, kinds
from pathfm_cli.data import finders, index, mask


@pytest.fixture(scope="session")
def demo_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "slides.parquet"
    index.index([str(DEMO_SLIDE)], out)
    return out


@pytest.fixture(scope="session")
def demo_tissue(demo_slides: Path) -> Path:
    out = demo_slides.with_name("tissue.parquet")
    mask.mask(demo_slides, out, finders.Otsu())
    return out


@pytest.fixture
def make_tissue(tmp_path: Path) -> MakeTissue:
    """Write a tissue artifact of (slide id, polygon in px0, mpp, side in px0, more columns)."""

    def make(*slides: tuple[str, shapely.Geometry, float, int], **more: Any) -> artifacts.Table:
        rows = [
            {
                "slide": name,
                "mpp": mpp,
                "width_px0": side,
                "height_px0": side,
                "geometry": shapely.to_wkb(shape),
                "tissue_area_mm2": shape.area * mpp**2 / 1e6,
            }
            for name, shape, mpp, side in slides
        ]
        frame = pl.DataFrame(rows).with_columns(pl.Series(k, v) for k, v in more.items())
        absent = [c for c in kinds.KINDS["tissue"].columns if c.name not in frame.columns]
        frame = frame.with_columns(pl.lit(None, pl.String).alias(c.name) for c in absent)
        out = tmp_path / "polygons.parquet"
        (tmp_path / "tiles.safetensors").touch()
        settings = {"made_of": [name for name, *_ in slides]}
        header = artifacts.Header(
            kind="tissue", settings=settings, files={"tiles": "tiles.safetensors"}
        )
        artifacts.write_table(out, frame, header)
        return artifacts.read_table(out, "tissue")

    return make


@pytest.fixture(scope="session")
def ring() -> shapely.Geometry:
    """A square from 100 to 900 with a square hole from 400 to 600."""
    outer, hole = shapely.box(100, 100, 900, 900), shapely.box(400, 400, 600, 600)
    return shapely.multipolygons([shapely.difference(outer, hole)])
