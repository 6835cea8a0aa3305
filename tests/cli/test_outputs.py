"""Outputs that must not be written: inputs, files of others, places without permission."""

import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pathfm_cli import artifacts
from pathfm_cli.cli import app

DEMO_SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
TINY = "random/vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copy(DEMO_SLIDE, folder / "slide.svs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert app.run("index slide.svs -o s.parquet -q".split()) == 0
        assert app.run("mask s.parquet -o t.parquet -q".split()) == 0
        assert app.run("sample t.parquet --n 6 --size 64 -o p.parquet -q".split()) == 0
    vectors = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    frame = pl.DataFrame({"id": list("abcdef"), "embedding": vectors, "error": [None] * 6})
    header = artifacts.Header(kind="embeddings")
    frame = frame.with_columns(pl.col("error").cast(pl.String))
    artifacts.write_table(folder / "e.parquet", frame, header)
    np.save(folder / "e.npy", vectors)
    (folder / "run").mkdir()
    shutil.copy(folder / "p.parquet", folder / "run" / "patches.parquet")
    return folder


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("mask s.parquet -o s.parquet", "s.parquet"),
        ("sample t.parquet --n 3 -o t.parquet", "t.parquet"),
        (f"embed p.parquet --model {TINY} -o p.parquet", "p.parquet"),
        ("odcorr e.parquet -o e.parquet", "e.parquet"),
        ("probe e.parquet -o e.parquet", "e.parquet"),
        ("pretrain run/patches.parquet --recipe tiny -o run", "run/patches.parquet"),
        ("index slide.svs -o slide.svs", "slide.svs"),
        ("odcorr e.npy -o e.npy/scores", "e.npy"),
        ("sample t.parquet --n 3 -o other.parquet --preview slide.svs", "slide.svs"),
    ],
)
def test_no_input_is_ever_replaced(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    kept: str,
) -> None:
    monkeypatch.chdir(made)
    before = (made / kept).read_bytes()
    overwrite = [] if "--preview" in command else ["--overwrite"]
    assert app.run([*command.split(), *overwrite]) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-2].startswith("pathfm: ") and said[-1].startswith("hint: ")
    assert (made / kept).read_bytes() == before


def test_an_earlier_contact_sheet_is_renewed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    command = "sample t.parquet --n 6 --size 64 -o p.parquet -q --preview sheet.png".split()
    assert app.run(command) == 0
    assert app.run(command) == 0


@pytest.mark.parametrize(
    "command",
    [
        "index slide.svs -o {place}/s.parquet",
        "mask s.parquet -o {place}/t.parquet",
        "mask s.parquet -o new.parquet --preview {place}/previews",
        "mask s.parquet -o new.parquet --geojson {place}/shapes",
        "sample t.parquet --n 3 -o {place}/p.parquet",
        "sample t.parquet --n 3 -o new.parquet --preview {place}/x.png",
        f"embed p.parquet --model {TINY} -o {{place}}/e.parquet",
        "pretrain t.parquet --recipe tiny -o {place}/run",
        "odcorr e.parquet -o {place}/scores",
        "probe e.parquet -o {place}/scores",
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_before_any_work(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.chdir(made)
    assert app.run(command.format(place="slide.svs").split()) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("pathfm: ") and said[-1].startswith("hint: ") and len(said) == 2
    assert not (made / "new.parquet").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert app.run(["mask", str(made / "s.parquet"), "-o", str(tmp_path / "t.parquet")]) == 2
    assert "no permission" in capfd.readouterr().err


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(os, "fsync", full)
    assert app.run(["mask", str(made / "s.parquet"), "-o", str(tmp_path / "t.parquet")]) == 1
    assert "No space left on device" in capfd.readouterr().err
    assert not (tmp_path / "t.parquet").exists()
