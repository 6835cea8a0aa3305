"""`pathfm report` as a real process."""

import json
from pathlib import Path

import pytest
from processes import pathfm


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    settings = {"name": "tiny", "train": {"steps": 2}}
    document = {"kind": "checkpoint", "parents": ["tissue:1"], "settings": settings}
    (path / "run.json").write_text(json.dumps(document))
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return path


def test_the_page_is_written_and_named(run, tmp_path):
    out = tmp_path / "r.html"
    done = pathfm("report", run, "-o", out)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "schema": "pathfm.report/1", "path": str(out), "inputs": 1,
    }  # fmt: skip
    assert "<svg" in out.read_text()
    piped = pathfm("report", "-o", out, "-q", stdin=f"{run}\n")
    assert (piped.returncode, piped.stdout) == (0, f"{out}\n")


def test_dry_run_touches_nothing(run, tmp_path):
    done = pathfm("report", run, "-o", tmp_path / "r.html", "-n")
    assert json.loads(done.stdout)["writes"] == [str(tmp_path / "r.html")]
    assert not (tmp_path / "r.html").exists()


def test_wrong_input_and_occupied_output_have_their_codes(run, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    for arguments, code, said in (
        ((tmp_path / "absent", "-o", tmp_path / "r.html"), 3, "does not exist"),
        ((run, "-o", mine), 2, "is no report of pathfm"),
        ((run, "-o", run), 2, "no name of an HTML file"),
        ((run, "-o", tmp_path / "no" / "x.txt"), 2, "no name of an HTML file"),
        (("-o", tmp_path / "r.html"), 2, "report needs runs, scores or embeddings"),
    ):
        done = pathfm("report", *arguments)
        assert done.returncode == code and said in done.stderr and "hint:" in done.stderr, done
    assert mine.read_text() == "<p>mine"
    assert pathfm("report", run, "-o", mine, "--overwrite").returncode == 0
    assert "<svg" in mine.read_text()
