"""The chain on slides behind a URL, with a cache of their tiles."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import servers

from pathfm_cli.data import draw, index, mask, sample
from pathfm_cli.wsi import cache

DEMO = Path(cache.__file__).parents[1] / "demo_data"


def pathfm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pathfm_cli", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )


@pytest.mark.slow
def test_embedding_twice_fetches_each_tile_once(tmp_path: Path) -> None:
    (slide,) = DEMO.glob("*.svs")
    embed = (
        *("embed", "p.parquet", "--model", "random/vit_tiny_patch16_224", "--batch-size", "4"),
        *("--cache", "tiles", "--cache-gb", "0.1"),
    )
    with servers.web(slide.parent) as address:
        index.index([f"{address}/{slide.name}"], tmp_path / "s.parquet")
        mask.mask(tmp_path / "s.parquet", tmp_path / "t.parquet")
        config = draw.SampleConfig(mpp=(0.5,))
        places = sample.Random(n=6, seed=0)
        sample.sample(tmp_path / "t.parquet", tmp_path / "p.parquet", config, places)
        done = pathfm(tmp_path, *embed, "-o", "e.parquet")
        assert done.returncode == 0, done.stderr
        before = servers.counts(address)
        done = pathfm(tmp_path, *embed, "-o", "again.parquet")
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
        (("--cache", "tiles", "--cache-gb", "0"), "a cache needs room"),
    ],
)
def test_a_wrong_cache_is_refused_first(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "file").touch()
    done = pathfm(tmp_path, "pretrain", "t.parquet", "--recipe", "tiny", "-o", "run", *options)
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert sentence in first and hint.startswith("hint: ")
    assert not (tmp_path / "run").exists()
