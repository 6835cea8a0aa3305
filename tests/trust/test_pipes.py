"""Named pipes where files should be: nothing waits for a writer that never comes."""

import os
from pathlib import Path

import badfiles
import polars as pl
import pytest
from goodfiles import Good
from PIL import Image
from processes import pathfm
from refusals import refused

from pathfm_cli import artifacts
from pathfm_cli.tasks import labelmaps

PATIENCE_S = 60
RUN = ("run.json", "config.toml", "metrics.jsonl")


def test_an_image(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "b.png")
    how = ["--images", "in", "--model", "random/test_vit", "-o", "e.parquet"]
    done = pathfm("embed", *how, cwd=tmp_path, timeout=PATIENCE_S)
    assert done.returncode == 4, done.stderr
    assert pl.read_parquet(tmp_path / "e.parquet")["error"].to_list() == [None, "it is no file"]


def test_a_label_map(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.png")
    with pytest.raises(labelmaps.errors.SlideError, match="m.png is no file"):
        labelmaps.raw(tmp_path / "m.png", "classes", (4, 4))


def test_the_tile_table_of_an_artifact(good: Good, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tiles")
    path = badfiles.retold(good.slides, files={"tiles": "tiles"})(tmp_path)
    how = ["mask", path, "--method", "otsu", "-o", "t.parquet"]
    refused(tmp_path, *how, codes=(3,), words="no tile table")


@pytest.mark.parametrize("name", RUN)
def test_files_of_a_run(name: str, good: Good, tmp_path: Path) -> None:
    """One of them is a pipe; what is trained in the folder is known, but for run.json."""
    (tmp_path / "run").mkdir()
    text = artifacts.Header(kind="checkpoint").dumps()
    (tmp_path / "run" / "run.json").write_text(text)
    (tmp_path / "run" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run" / name)
    how = ["pretrain", good.tissue, "--recipe", "tiny", "-o", "run"]
    refused(tmp_path, *how, codes=(2,), words="is no run|no file")
    if name != "config.toml":  # a report does not read it
        refused(
            tmp_path, "report", "run", "-o", "r.html", codes=(3,), words=f"{name}.*damaged|no f"
        )
