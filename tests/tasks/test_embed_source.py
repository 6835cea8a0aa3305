"""Patches and tissue as a source: rows, ids, facts of the slides, pixels."""

import shutil
from pathlib import Path

import numpy as np
import openslide
import polars as pl
import pytest
from PIL import Image

from pathfm_cli import artifacts, errors
from pathfm_cli.data import draw, finders, index, mask, sample
from pathfm_cli.tasks import embed, request, source

ROOT = Path(__file__).parents[2]
DEMO_SLIDE = ROOT / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
CONFIG = draw.SampleConfig(mpp=(1.0,), size_px=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides (the same pixels) with metadata, their tissue, a grid and repeated patches."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("b", "a"):
        shutil.copy(DEMO_SLIDE, folder / f"{name}.svs")
    table = pl.DataFrame(
        {"slide": ["a", "b"], "organ": ["skin", "lung"], "split": ["train", "test"], "case": [1, 2]}
    )
    table.write_csv(folder / "m.csv")
    index.index(
        [str(folder / "a.svs"), str(folder / "b.svs")],
        folder / "s.parquet",
        table=folder / "m.csv",
    )
    mask.mask(folder / "s.parquet", folder / "t.parquet", finders.Otsu())
    grid = sample.Grid(stride_px=128)
    sample.sample(folder / "t.parquet", folder / "p.parquet", CONFIG, grid)
    return folder


def test_patches_carry_the_facts_of_their_slides(folder: Path) -> None:
    columns = source.Columns(label="organ", group="case")
    data = source.patches(folder / "p.parquet", columns)
    table = pl.read_parquet(folder / "p.parquet")
    assert data.rows.columns == ["id", "label", "split", "group", "slide", "x_px0", "y_px0", "mpp"]
    assert data.rows.select("slide", "x_px0", "y_px0", "mpp").equals(
        table.select("slide", "x_px0", "y_px0", "mpp")
    )
    facts = data.rows.select("slide", "label", "split", "group").unique().sort("slide")
    assert facts.rows() == [("a", "skin", "train", "1"), ("b", "lung", "test", "2")]
    assert data.settings == {
        "size_px": 128,
        "columns": {"label": "organ", "group": "case"},
        "classes": ["lung", "skin"],
    }
    assert data.parent == f"patches:{artifacts.read_header(folder / 'p.parquet').id}"


def test_ids_name_the_place_and_are_unique(folder: Path, tmp_path: Path) -> None:
    data = source.patches(folder / "p.parquet")
    first = data.rows.row(0, named=True)
    x, y = (str(first[name]).removesuffix(".0") for name in ("x_px0", "y_px0"))
    assert first["id"] == f"a@1:{x},{y}"
    assert data.rows["id"].n_unique() == data.rows.height
    table = artifacts.read_table(folder / "p.parquet")
    twice = pl.concat([table.frame.head(1)] * 3)
    header = artifacts.Header(
        kind="patches", files={"tiles": str(table.file("tiles"))}, settings={"twice": True}
    )
    artifacts.write_table(tmp_path / "p.parquet", twice, header, attached=dict(table.attached))
    ids = source.patches(tmp_path / "p.parquet").rows["id"].to_list()
    assert ids == [first["id"], f"{first['id']}#2", f"{first['id']}#3"]


def test_pixels_are_those_of_the_slide(folder: Path) -> None:
    data = source.patches(folder / "p.parquet")
    for row in (0, data.rows.height - 1):
        place = data.rows.row(row, named=True)
        with openslide.open_slide(DEMO_SLIDE) as slide:
            mpp0 = float(slide.properties["openslide.mpp-x"])
            extent = 128 / mpp0
            x, y = int(place["x_px0"]), int(place["y_px0"])
            region = slide.read_region((x, y), 0, (int(extent) + 2,) * 2).convert("RGB")
        dx, dy = place["x_px0"] - x, place["y_px0"] - y
        box = (dx, dy, dx + extent, dy + extent)
        expected = region.resize((128, 128), Image.Resampling.BILINEAR, box=box)
        difference = data.read(row).astype(int) - np.asarray(expected).astype(int)
        assert abs(difference).mean() < 4, row


def test_a_grid_over_tissue_equals_sampling_it_first(folder: Path) -> None:
    direct = source.tissue(folder / "t.parquet", source.Grid(CONFIG))
    sampled = source.patches(folder / "p.parquet")
    assert direct.rows.equals(sampled.rows)
    assert np.array_equal(direct.read(5), sampled.read(5))
    grid = {"mpp": [1.0], "min_tissue": 0.4, "stride_px": 128}
    assert direct.settings["grid"] == grid and direct.settings["size_px"] == 128


def test_the_result_travels_with_its_slides(folder: Path, tmp_path: Path) -> None:
    from pathfm_cli.model import weights

    encoder = weights.load("random/vit_tiny_patch16_224", device="cpu", image_size_px=32)
    data = source.patches(folder / "p.parquet", source.Columns(label="organ"))
    (tmp_path / "deep").mkdir()
    embed.embed(data, encoder, tmp_path / "deep" / "e.parquet")
    table = artifacts.read_table(tmp_path / "deep" / "e.parquet", "embeddings")
    assert table.attached["slides"]["slide"].to_list() == ["a", "b"]
    assert "geometry" not in table.attached["slides"].columns
    assert table.file("tiles") == artifacts.read_table(folder / "s.parquet").file("tiles")
    assert table.frame["embedding"].null_count() == 0 and table.frame.height == data.rows.height


def test_unknown_columns_and_kinds_are_refused(folder: Path) -> None:
    with pytest.raises(errors.UsageError, match="no column 'organs'") as caught:
        source.patches(folder / "p.parquet", source.Columns(label="organs"))
    assert caught.value.hint == "--label organ"
    with pytest.raises(errors.UsageError, match="names its slides itself"):
        source.patches(folder / "p.parquet", source.Columns(slide="case"))
    with pytest.raises(errors.UsageError, match="needs --mpp"):
        request.open_places(folder / "t.parquet", source.SAME, None)
    with pytest.raises(errors.UsageError, match="says itself"):
        request.open_places(folder / "p.parquet", source.SAME, source.Grid(CONFIG))
    with pytest.raises(errors.InputError, match="is of kind slides"):
        request.open_places(folder / "s.parquet", source.SAME, None)


def test_grid_options() -> None:
    assert request.grid(None, None, None, None) is None
    grid = request.grid("0.5,1", 224, 112, 0.6)
    assert grid is not None and grid.stride_px == 112
    assert (grid.config.mpp, grid.config.size_px, grid.config.min_tissue) == ((0.5, 1.0), 224, 0.6)
    plain = request.grid("1", None, None, None)
    assert plain is not None and (plain.config.size_px, plain.config.min_tissue) == (256, 0.4)
    for bad in [(None, 256, None, None), ("20x", None, None, None), ("1", None, 0, None)]:
        with pytest.raises(errors.UsageError):
            request.grid(*bad)
