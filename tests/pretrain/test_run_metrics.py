"""The metrics file: never doubled, never broken by a kill."""

import json

import polars as pl

from pathfm_cli.pretrain import metrics


def test_lines_are_there_at_once(tmp_path):
    log = metrics.Log(tmp_path / "m.jsonl", 0)
    log.write({"step": 1, "loss": 0.5})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "loss": 0.5}


def test_resume_cuts_later_and_half_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    log = metrics.Log(path, 2)
    log.write({"step": 3, "again": True})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": true}\n'


def test_last_step_reads_only_whole_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    assert metrics.last_step(path) == 0
    path.write_text("")
    assert metrics.last_step(path) == 0
    path.write_text('{"step": 7, "x": 1}\n{"step": 8')
    assert metrics.last_step(path) == 7
    path.write_text("".join(f'{{"step": {n}, "x": "{"y" * 50}"}}\n' for n in range(500)))
    assert metrics.last_step(path) == 499


def test_the_table_holds_the_lines(tmp_path):
    source, target = tmp_path / "m.jsonl", tmp_path / "m.parquet"
    source.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
    assert metrics.table(source, target)[-1] == {"step": 2, "loss": 2.0}
    assert pl.read_parquet(target).to_dict(as_series=False) == {"step": [1, 2], "loss": [2.5, 2.0]}


def test_a_line_in_short():
    line = {"step": 3, "loss": 5.4321, "lr": 2e-4, "images_per_s": 412.34, "stall": 0.013}
    assert metrics.said(line) == "loss 5.432 lr 0.0002 412.3 img/s stall 1%"
    assert metrics.said({}) == ""
