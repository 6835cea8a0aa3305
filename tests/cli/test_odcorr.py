from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import exported
import numpy as np
import polars as pl
import pytest
import safetensors
from processes import pathfm
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import export
from pathfm_cli.tasks import exports, runs

OWN = "run/patches.parquet"
SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odcorr")
    z = np.random.default_rng(0).standard_normal((60, 10)).astype(np.float32)
    frame = pl.DataFrame(
        {
            "id": [str(i) for i in range(60)],
            "embedding": pl.Series(z, dtype=pl.Array(pl.Float32, 10)),
            "error": pl.Series([None] * 60, dtype=pl.String),
            "split": ["train"] * 40 + ["test"] * 20,
        }
    )
    artifacts.write_table(folder / "e.parquet", frame, artifacts.Header(kind="embeddings"))
    np.save(folder / "z.npy", z)
    np.save(folder / "one.npy", z[:1])
    np.save(folder / "collapsed.npy", np.ones((20, 5), np.float32))
    np.save(folder / "mostly.npy", np.where(np.arange(60)[:, None] < 58, np.float32(3), z))
    np.save(folder / "nan.npy", np.where(np.arange(10) == 3, np.nan, z))
    (folder / "text.parquet").write_text("no table")
    frame.drop("embedding").write_parquet(folder / "bare.parquet")
    scores = pl.DataFrame({"metric": ["m"], "split": [""], "run": [0], "value": [0.0]})
    artifacts.write_table(folder / "scores.parquet", scores, artifacts.Header(kind="scores"))
    (folder / "notes.parquet").write_text("mine")
    return folder


def expected(folder, rows):
    rho = np.corrcoef(np.load(folder / "z.npy").astype(np.float64)[rows])
    return math.sqrt((rho**2).sum() / len(rho) / (len(rho) - 1) - 1 / (len(rho) - 1))


def test_json_and_nothing_written(folder):
    before = sorted(folder.iterdir())
    done = pathfm("odcorr", "e.parquet", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["kind"] == "scores" and "path" not in record
    metrics = record["metrics"]
    assert metrics["odcorr"] == pytest.approx(expected(folder, slice(None)), abs=1e-12)
    assert metrics["floor"] == pytest.approx(1 / 3)
    assert (metrics["n"], metrics["k"], metrics["constant_rows"]) == (60, 10, 0)
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert sorted(folder.iterdir()) == before


def test_a_record_on_stdin_and_one_split(folder):
    header = artifacts.read_header(folder / "e.parquet")
    line = json.dumps(header.record(folder / "e.parquet"))
    done = pathfm("odcorr", "--split", "test", cwd=folder, stdin=line + "\n")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["metrics"]["odcorr"]
    assert found == pytest.approx(expected(folder, slice(40, None)), abs=1e-12)


@pytest.mark.parametrize("given", ["z.npy", "e.parquet"])
def test_gates_come_after_the_record(folder, given):
    value = expected(folder, slice(None))
    done = pathfm("odcorr", given, "--max", "0.05", cwd=folder)
    assert done.returncode == 5
    assert json.loads(done.stdout)["metrics"]["odcorr"] == pytest.approx(value)
    assert done.stderr.startswith("pathfm: ODCorr 0.") and "above --max 0.05" in done.stderr
    assert pathfm("odcorr", given, "--min", "0.9", "-q", cwd=folder).returncode == 5
    quiet = pathfm("odcorr", given, "--max", str(value + 1e-6), "-q", cwd=folder)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_a_gate_does_not_pass_an_encoder_that_is_mostly_constant(folder):
    free = pathfm("odcorr", "mostly.npy", cwd=folder)
    assert free.returncode == 0 and "58 constant rows are left out" in free.stderr
    gated = pathfm("odcorr", "mostly.npy", "--max", "1", cwd=folder)
    assert gated.returncode == 5 and json.loads(gated.stdout)["metrics"]["n"] == 2
    assert "58 of 60 embeddings are constant (96.7 %); --max-constant is 0.01" in gated.stderr
    loose = pathfm("odcorr", "mostly.npy", "--max", "1", "--max-constant", "0.97", cwd=folder)
    assert loose.returncode == 0


def test_a_baseline_counts_constant_rows_and_comes_after_the_record(folder):
    assert pathfm("odcorr", "mostly.npy", "-o", "mostly.parquet", cwd=folder).returncode == 0
    gates = ("--baseline", "mostly.parquet", "--tolerance", "1")
    # 60 rows without a constant one are as many images as 2 rows and 58 constant ones.
    assert pathfm("odcorr", "z.npy", *gates, cwd=folder).returncode == 0
    np.save(folder / "fewer.npy", np.load(folder / "z.npy")[:50])
    other = pathfm("odcorr", "fewer.npy", *gates, cwd=folder)
    assert other.returncode == 2 and "rows 60, now 50" in other.stderr
    assert json.loads(other.stdout)["metrics"]["n"] == 50
    split = pathfm("odcorr", "e.parquet", "--split", "test", *gates, cwd=folder)
    assert (split.returncode, split.stdout) == (2, "") and "split all, now test" in split.stderr


def test_written_scores_and_rerun(folder):
    first = pathfm("odcorr", "z.npy", "-o", "o.parquet", cwd=folder)
    assert first.returncode == 0, first.stderr
    record = json.loads(first.stdout)
    assert record["path"] == str(folder / "o.parquet")
    values = dict(pl.read_parquet(folder / "o.parquet").select("metric", "value").iter_rows())
    assert values["odcorr"] == record["metrics"]["odcorr"]
    document = json.loads((folder / "o.json").read_text())
    assert document["metrics"] == record["metrics"] and document["id"] == record["id"]
    again = pathfm("odcorr", "z.npy", "-o", "o.parquet", cwd=folder)
    assert (again.returncode, json.loads(again.stdout)["id"]) == (0, record["id"])
    assert "up to date" in again.stderr
    other = pathfm("odcorr", "e.parquet", "-o", "o.parquet", cwd=folder)
    assert other.returncode == 2 and "other inputs (file:" in other.stderr
    gated = pathfm("odcorr", "z.npy", "-o", "o.parquet", "--max", "0.01", cwd=folder)
    assert gated.returncode == 5


def test_dry_run_names_what_it_would_do(folder):
    done = pathfm("odcorr", "e.parquet", "-n", "-o", "new/", cwd=folder)
    plan = json.loads(done.stdout)
    assert (plan["rows"], plan["width"], plan["gram_side"]) == (60, 10, 10)
    assert plan["writes"] == ["new/scores.parquet", "new/scores.json"]
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["e.parquet", "--max", "1.5"], 2, "--max 1.5 is not between 0 and 1"),
        (["e.parquet", "--max", "nan"], 2, "--max nan is not between 0 and 1"),
        (["e.parquet", "--max", "0.1", "--min", "0.2"], 2, "above --max"),
        (["e.parquet", "--max", "high"], 2, "valid number"),
        (["e.parquet", "--split", "tset"], 2, "no split 'tset'"),
        (["z.npy", "--split", "test"], 3, "no column `split`"),
        (["absent.parquet"], 3, "does not exist"),
        (["text.parquet"], 3, "is not a file of embeddings"),
        (["bare.parquet"], 3, "no float list `embedding`"),
        (["scores.parquet"], 3, "is of kind scores"),
        (["collapsed.npy"], 3, "two rows that are not constant; there are 0, and 20 constant"),
        (["collapsed.npy", "--max", "1"], 5, "20 of 20 embeddings are constant (100.0 %)"),
        (["one.npy", "--max", "1"], 3, "there are 1, and 0 constant"),
        (["nan.npy", "--max", "1"], 3, "row 0 holds NaN"),
        (["e.parquet", "-o", "notes.parquet"], 2, "is no pathfm artifact"),
        (["e.parquet", "-o", "z.npy"], 2, "cannot hold scores"),
        ([], 2, "odcorr needs embeddings or a checkpoint: name it, or pipe it in"),
    ],
)
def test_wrong_input(folder, arguments, code, message):
    done = pathfm("odcorr", *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("pathfm: ") and message in lines[0]
    assert lines[1].startswith("hint: ") and len(lines) == 2
    assert arguments or lines[1] == "hint: pathfm odcorr embeddings.parquet, or pathfm odcorr run/"


def test_an_occupied_output_fails_before_stdin_is_read(folder):
    done = pathfm("odcorr", "-o", "notes.parquet", cwd=folder, stdin="nonsense\n")
    assert done.returncode == 2 and "is no pathfm artifact" in done.stderr
    assert (folder / "notes.parquet").read_text() == "mine"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run as `pretrain` leaves it: an exported encoder and the patches it is judged on."""
    folder = tmp_path_factory.mktemp("run")
    for arguments in (
        ("index", str(SLIDE), "-o", "s.parquet"),
        ("mask", "s.parquet", "-o", "t.parquet"),
        ("sample", "t.parquet", "--n", "24", "--mpp", "1", "--size", "64", "-o", OWN),
        ("sample", "t.parquet", "--n", "9", "--mpp", "1", "--size", "64", "-o", "q.parquet"),
    ):
        done = pathfm(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    encoder, info = exported.encoder(), exported.INFO
    header = artifacts.Header(kind="checkpoint", settings={"a": 1})
    export.export(folder / "run", encoder, dataclasses.replace(info, step=40), header)
    export.export(folder / "bare", encoder, info, header)
    exported.collapse(encoder)
    early = artifacts.Header(kind="checkpoint", settings={"a": 1, "step": 5})
    info = dataclasses.replace(info, step=5)
    export.export(folder / "run" / "exports" / "step-000005", encoder, info, early)
    return folder


def test_a_run_is_measured_on_the_patches_it_recorded(run_folder):
    done = pathfm("odcorr", "run/", "--json", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    embed = pathfm("embed", OWN, "--model", "run", "-o", "e.parquet", cwd=run_folder)
    assert embed.returncode == 0, embed.stderr
    same = json.loads(pathfm("odcorr", "e.parquet", cwd=run_folder).stdout)
    assert record["id"] == same["id"]
    assert record["metrics"]["odcorr"] == pytest.approx(same["metrics"]["odcorr"], abs=1e-9)
    line = json.dumps(
        {"schema": "pathfm.artifact/1", "kind": "checkpoint", "path": "run/teacher.safetensors"}
    )
    arguments = ("--patches", "q.parquet", "--max", "0.001")
    piped = pathfm("odcorr", *arguments, cwd=run_folder, stdin=line + "\n")
    assert piped.returncode == 5
    assert json.loads(piped.stdout)["metrics"]["n"] == 9


def test_which_patches(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    run, bare, other = Path("run"), Path("bare"), Path("q.parquet")
    assert runs.patches_of(run / "teacher.safetensors") == Path(OWN)
    assert runs.plan(run, None, None)["rows"] == 24
    assert runs.plan(bare, other, Path("new"))["rows"] == 9
    with pytest.raises(errors.InputError, match="bare recorded no patches") as caught:
        runs.embed_run(bare, None, run_folder)
    assert caught.value.hint == "pathfm odcorr bare --patches p.parquet"
    with pytest.raises(errors.InputError, match="is of kind tissue"):
        runs.embed_run(run, Path("t.parquet"), run_folder)


def test_a_split_of_a_run(run_folder, monkeypatch):
    monkeypatch.setattr(runs.weights, "load", lambda *_, **__: pytest.fail("embedded"))
    monkeypatch.chdir(run_folder)
    for measure in (runs.measure, exports.measure):
        with pytest.raises(errors.InputError, match=r"^run/patches.parquet has no column `split`"):
            measure(Path("run"), None, None, split="test")
    with pytest.raises(errors.InputError, match="no column `split`"):
        runs.plan(Path("run"), None, None, "test")
    monkeypatch.undo()
    by_split = run_folder / "split.parquet"
    (run_folder / "b.svs").symlink_to(SLIDE)
    (run_folder / "m.csv").write_text(f"slide,split\n{SLIDE.stem},test\nb,val\n")
    for arguments in (
        ("index", SLIDE, "b.svs", "--metadata", "m.csv", "-o", "s2.parquet"),
        ("mask", "s2.parquet", "-o", "t2.parquet"),
        ("sample", "t2.parquet", "--n", "12", "--mpp", "1", "--size", "64", "-o", by_split),
    ):
        done = pathfm(*map(str, arguments), cwd=run_folder)
        assert done.returncode == 0, done.stderr
    slides = pl.read_parquet(by_split)["slide"].to_list()
    for split, name in (("test", SLIDE.stem), ("val", "b"), (None, "")):
        found = runs.measure(run_folder / "run", by_split, None, split=split).record
        assert found["metrics"]["n"] == sum(name in ("", slide) for slide in slides) >= 2
    typed = ("odcorr", "run", "--patches", str(by_split), "--split", "val")
    found = json.loads(pathfm(*typed, cwd=run_folder).stdout)["metrics"]["n"]
    assert found == sum(slide == "b" for slide in slides)
    with pytest.raises(errors.UsageError, match=r"split\.parquet has no split 'train'"):
        runs.measure(run_folder / "run", by_split, None, split="train")


@pytest.mark.parametrize("flag", [("--patches", "p.parquet"), ("--every-export",)])
def test_options_of_a_run_without_a_run(folder, flag):
    done = pathfm("odcorr", "z.npy", *flag, cwd=folder)
    assert done.returncode == 2 and f"{flag[0]} goes with a run" in done.stderr


def test_every_export_of_a_run(run_folder):
    arguments = ("odcorr", "run", "--every-export", "-o", "all.parquet", "--max", "0.9999")
    done = pathfm(*arguments, cwd=run_folder)
    # The collapsed encoder is the one of step 5; the limit is for the last.
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    first, last = record["exports"]
    assert (first["step"], last["step"]) == (5, 40)
    assert first["odcorr"] == pytest.approx(1, abs=1e-9) and first["rankme"] < 1.01
    alone = json.loads(pathfm("odcorr", "run", cwd=run_folder).stdout)["metrics"]
    for metrics in (last, record["metrics"]):
        assert metrics["odcorr"] == pytest.approx(alone["odcorr"], abs=1e-9)
    table = pl.read_parquet(run_folder / "all.parquet").filter(pl.col("metric") == "odcorr")
    assert table["run"].to_list() == [5, 40, None]
    again = pathfm(*arguments, cwd=run_folder)
    assert json.loads(again.stdout) == record and "up to date" in again.stderr
    plan = json.loads(
        pathfm("odcorr", "--every-export", "-n", cwd=run_folder, stdin="run/teacher.safetensors\n")
        .stdout
    )  # fmt: skip
    assert plan["steps"] == [5, 40]
    early = pathfm("odcorr", "run/exports/step-000005", "--max", "0.9999", cwd=run_folder)
    assert early.returncode == 5 and json.loads(early.stdout)["metrics"]["n"] == 24
    bare = pathfm("odcorr", "bare", "--every-export", "--patches", "q.parquet", cwd=run_folder)
    assert bare.returncode == 3 and "bare exported no encoder on the way" in bare.stderr


def test_a_baseline(run_folder):
    first = pathfm("odcorr", "run", "--json", cwd=run_folder)
    (run_folder / "old.json").write_text(first.stdout)
    document = json.loads(pathfm("odcorr", "run", "-o", "old/", cwd=run_folder).stdout)
    assert document["metrics"]["odcorr"] == json.loads(first.stdout)["metrics"]["odcorr"]
    gates = ("--baseline", "old.json", "--tolerance", "0.0005")
    assert pathfm("odcorr", "run", *gates, "-q", cwd=run_folder).returncode == 0
    worse = pathfm("odcorr", "run/exports/step-000005", *gates, cwd=run_folder)
    assert worse.returncode == 5 and "above the 0." in worse.stderr
    other = pathfm("odcorr", "run", *gates, "--patches", "q.parquet", cwd=run_folder)
    assert other.returncode == 2 and "rows 24, now 9" in other.stderr
    assert json.loads(other.stdout)["metrics"]["n"] == 9
    known = ("--baseline", "old/", *gates[2:], "--patches", "q.parquet")
    other = pathfm("odcorr", "run", *known, cwd=run_folder)
    assert (other.returncode, other.stdout) == (2, "")
    assert "does not compare: images patches:" in other.stderr
    alone = pathfm("odcorr", "run", "--tolerance", "0.1", cwd=run_folder)
    assert alone.returncode == 2 and "go together" in alone.stderr


def test_a_constant_export_on_the_way_ends_nothing(run_folder):
    folder = run_folder / "collapsed"
    shutil.copytree(run_folder / "run", folder)
    early = folder / "exports" / "step-000005" / export.WEIGHTS
    with safetensors.safe_open(early, "pt") as file:
        metadata = file.metadata()
    state = safetensors_torch.load_file(early)
    for name in ("norm.weight", "norm.bias"):
        state[name].zero_()
    safetensors_torch.save_file(state, early, metadata=metadata)
    done = pathfm("odcorr", "collapsed", "--every-export", "--max", "0.9999", cwd=run_folder)
    assert done.returncode == 0, done.stderr
    first, last = json.loads(done.stdout)["exports"]
    assert first == {"step": 5} and last["step"] == 40 and 0 < last["odcorr"] < 1
    assert "all embeddings of step 5 are constant" in done.stderr
