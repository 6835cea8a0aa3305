"""The chain on slides behind a URL, with a cache of their tiles."""

import json
import sqlite3
from pathlib import Path

import polars as pl
import pytest
import servers
from processes import pathfm

from pathfm_cli.data import draw, index, mask, sample
from pathfm_cli.wsi import cache

DEMO = Path(cache.__file__).parents[1] / "demo_data"


@pytest.mark.slow
def test_embedding_twice_fetches_each_tile_once(tmp_path: Path) -> None:
    (slide,) = DEMO.glob("*.svs")
    embed = (
        *("embed", "p.parquet", "--model", "random/test_vit", "--batch-size", "4"),
        *("--cache", "tiles", "--cache-gb", "0.1"),
    )
    with servers.web(slide.parent) as address:
        index.index([f"{address}/{slide.name}"], tmp_path / "s.parquet")
        mask.mask(tmp_path / "s.parquet", tmp_path / "t.parquet")
        config = draw.SampleConfig(mpp=(0.5,))
        places = sample.Random(n=6, seed=0)
        sample.sample(tmp_path / "t.parquet", tmp_path / "p.parquet", config, places)
        done = pathfm(*embed, "-o", "e.parquet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        before = servers.counts(address)
        done = pathfm(*embed, "-o", "again.parquet", cwd=tmp_path)
        assert servers.counts(address) == before
    assert json.loads(done.stdout)["rows"] == 6
    first, again = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("e", "again"))
    assert first["embedding"].to_list() == again["embedding"].to_list()
    with sqlite3.connect(tmp_path / "tiles" / cache.NAME) as tiles:
        assert tiles.execute("SELECT COUNT(*) FROM tiles").fetchone()[0] >= 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cache", "file"), "--cache"),
        (("--cache", "tiles", "--cache-gb", "0"), "--cache-gb 0.0: a cache has between 0 and"),
    ],
)
def test_a_wrong_cache_is_refused_first(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "file").touch()
    done = pathfm(
        *("pretrain", "t.parquet", "--recipe", "tiny", "-o", "run", *options), cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert sentence in first and hint.startswith("hint: ")
    assert not (tmp_path / "run").exists()
