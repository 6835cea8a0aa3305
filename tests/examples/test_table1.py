"""`examples/table1`: the paper's layout, and one command that fills it."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from processes import commands

FILE = Path(__file__).parents[2] / "examples" / "table1" / "table1.py"
spec = importlib.util.spec_from_file_location("table1", FILE)
assert spec and spec.loader
table1 = importlib.util.module_from_spec(spec)
sys.modules["table1"] = table1
spec.loader.exec_module(table1)

RANDOM, TINY = "random/vit_small_patch16_224", "random/vit_tiny_patch16_224"


@pytest.fixture
def table() -> table1.Table:
    tasks = [{"name": "BACH", "task": "bach", "data": "b"}, {"name": "<own>", "images": "i"}]
    cells = {
        (RANDOM, "BACH"): table1.Cell(0.41, 0.009, notes=("no split val",)),
        (RANDOM, "<own>"): table1.Cell(problem="no such <file>."),
        (TINY, "BACH"): table1.Cell(0.3994, 0.01, notes=("no split val",)),
        (TINY, "<own>"): table1.Cell(0.5),
    }
    return table1.Table([RANDOM, TINY], tasks, cells, "balanced accuracy")


def test_markdown_has_both_tables_of_the_paper(table: table1.Table) -> None:
    text = table1.markdown(table)
    assert f"| ViT-S16 (rand.) `{RANDOM}` | None | **0.410** | n/a |" in text
    assert f"| {TINY} | ? | 0.399 | **0.500** |" in text
    assert "**0.410 (±0.009)**" in text and "| Model | Training data | BACH | <own> |" in text
    assert f"- n/a: {RANDOM} on <own>: no such <file>." in text
    assert text.count("- BACH: no split val") == 1


def test_csv_has_the_published_score_beside_ours(table: table1.Table) -> None:
    rows = list(csv.DictReader(table1.comma_separated(table).splitlines()))
    assert [row["published"] for row in rows] == ["0.41", "", "", ""]
    assert (rows[0]["score"], rows[0]["deviation"]) == ("0.410000", "0.009000")
    assert rows[1]["score"] == "" and rows[1]["problem"] == "no such <file>."


def test_html_needs_nothing_else_and_escapes(table: table1.Table) -> None:
    text = table1.page(table)
    assert "&lt;own&gt;" in text and "<own>" not in text and "<file>" not in text
    assert "<b>0.410</b>" in text and "http" not in text


def test_one_command_fills_it_and_a_bad_cell_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in commands().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", shutil.which("python"))
    (tmp_path / "mhist" / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        noise = rng.integers(0, 40, (32, 32, 3)) + 150 * (number % 2)
        name = f"MHIST_{number:03}.png"
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "mhist" / "images" / name)
        rows.append((name, ("SSA", "HP")[number % 2], "train" if number < 8 else "test"))
    columns = ["Image Name", "Majority Vote Label", "Partition"]
    pl.DataFrame(rows, columns, orient="row").write_csv(tmp_path / "mhist" / "annotations.csv")
    (tmp_path / "list.toml").write_text(
        f'models = ["{TINY}"]\nprobe = "--method knn"\n'
        '[[tasks]]\nname = "MHIST"\ntask = "mhist"\ndata = "mhist"\nprobe = "--partial"\n'
        '[[tasks]]\nname = "own"\nimages = "absent"\n'
    )
    arguments = [str(tmp_path / "list.toml"), "-o", str(tmp_path / "out")]
    assert table1.main(arguments) == 4
    rows = list(csv.DictReader((tmp_path / "out" / "table1.csv").read_text().splitlines()))
    assert float(rows[0]["score"]) > 0.7 and "absent" in rows[1]["problem"]
    assert "- MHIST: mhist is not complete" in (tmp_path / "out" / "table1.md").read_text()
    scores = tmp_path / "out" / "scores"
    assert [path.name for path in scores.iterdir()] == ["MHIST-random_vit_tiny_patch16_224"]
    before = (next(scores.iterdir()) / "scores.parquet").stat().st_mtime_ns
    assert table1.main(arguments) == 4
    assert (next(scores.iterdir()) / "scores.parquet").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("table1.md") == 2


def test_a_bad_list_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = 'models = ["a"]\n[[tasks]]\nname = "x"\n'
    for text in (
        "models = [",
        'models = ["a"]\n',
        whole,
        'models = "a"\n[[tasks]]\nname = "x"\nimages = "i"\n',
        "models = [1]\n" + whole.partition("\n")[2] + 'images = "i"\n',
        'models = ["a"]\ntasks = ["x"]\n',
        'models = ["a"]\ntasks = 3\n',
        whole + 'data = "d"\n',
        whole + "images = 3\n",
        whole + 'images = "i"\nprobes = "--runs 2"\n',
        whole + 'images = "i"\nprobe = "--where \'"\n',
        "probe = 3\n" + whole + 'images = "i"\n',
    ):
        (tmp_path / "l.toml").write_text(text)
        assert table1.main([str(tmp_path / "l.toml"), "-o", str(tmp_path / "o")]) == 2
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith("table1: ") and said[1].startswith("hint: ") and len(said) == 2
    assert not (tmp_path / "o").exists()
    assert len(table1.read(FILE.with_name("example.toml"))["tasks"]) == 6


def test_an_output_that_is_a_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'models = ["a"]\n[[tasks]]\nname = "x"\nimages = "i"\n'
    (tmp_path / "l.toml").write_text(text)
    (tmp_path / "o").write_text("taken")
    assert table1.main([str(tmp_path / "l.toml"), "-o", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "cannot be written" in said[0] and len(said) == 2


def test_a_score_other_than_the_published_one_is_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, score in ((5, 0.7), (0, 0.7), (3, None)):
        out = '{"metrics": {"balanced_accuracy": 0.7, "balanced_accuracy_std": 0.1}}'
        done = subprocess.CompletedProcess([], code, out, "pathfm: FAIL.\n")
        monkeypatch.setattr(table1.subprocess, "run", lambda *_, done=done, **__: done)
        assert table1.evaluate([["probe"]]).score == score
