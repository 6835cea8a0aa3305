from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from processes import pathfm

from pathfm_cli import artifacts


def frame(splits, labels=("a", "b", "c")):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, len(labels), len(splits))
    z = np.eye(6, dtype=np.float32)[numbers] * 4 + rng.standard_normal((len(splits), 6))
    return pl.DataFrame(
        {
            "id": [str(i) for i in range(len(splits))],
            "embedding": pl.Series(z.astype(np.float32), dtype=pl.Array(pl.Float32, 6)),
            "error": pl.Series([None] * len(splits), dtype=pl.String),
            "label": [labels[i] for i in numbers],
            "split": splits,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    table = frame(["train"] * 60 + ["val"] * 30 + ["test"] * 30)
    header = artifacts.Header(kind="embeddings")
    artifacts.write_table(folder / "e.parquet", table, header)
    table.with_columns(
        error=pl.when(pl.col("id") == "3").then(pl.lit("cut short")),
        embedding=pl.when(pl.col("id") == "3").then(None).otherwise(pl.col("embedding")),
    ).write_parquet(folder / "failed.parquet")
    strange = pl.when(pl.col("id") == "119").then(pl.lit("z")).otherwise(pl.col("label"))
    table.with_columns(label=strange).write_parquet(folder / "strange.parquet")
    np.save(folder / "z.npy", np.ones((4, 4)))
    (folder / "taken").mkdir()
    (folder / "taken" / "scores.json").write_text("{}")
    return folder


def test_scores_heads_and_rerun(folder):
    done = pathfm("probe", "e.parquet", "-o", "scores", "--runs", "2", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record["kind"] == "scores"
    assert record["path"] == str(folder / "scores" / "scores.parquet")
    assert record["metrics"]["balanced_accuracy"] > 0.9
    assert record["metrics"]["runs"] == 2
    names = {path.name for path in (folder / "scores").iterdir()}
    assert names == {
        "scores.parquet",
        "scores.json",
        "heads.safetensors",
        "predictions.parquet",
    }
    again = pathfm("probe", "e.parquet", "-o", "scores", "--runs", "2", "-q", cwd=folder)
    assert again.returncode == 0 and "up to date" in again.stderr
    assert again.stdout == record["path"] + "\n"
    other = pathfm("probe", "e.parquet", "-o", "scores", "--runs", "3", cwd=folder)
    assert other.returncode == 2 and "runs=2 (now 3)" in other.stderr


def test_a_record_on_stdin_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    line = json.dumps(artifacts.read_header(folder / "e.parquet").record(folder / "e.parquet"))
    done = pathfm("probe", "--runs", "1", cwd=folder, stdin=line + "\n")
    assert done.returncode == 0, done.stderr
    assert "path" not in json.loads(done.stdout)
    assert sorted(folder.rglob("*")) == before


def test_what_is_left_out_is_said(folder):
    done = pathfm("probe", "failed.parquet", "--runs", "1", cwd=folder)
    assert done.returncode == 0
    assert "1 rows without an embedding are left out" in done.stderr
    assert json.loads(done.stdout)["metrics"]["n_train"] == 59
    made = ("probe", "failed.parquet", "--method", "knn", "-o", "left-out")
    first, again = pathfm(*made, cwd=folder), pathfm(*made, cwd=folder)
    assert again.stderr.splitlines() == [*first.stderr.splitlines(), "pathfm probe: up to date"]
    done = pathfm("probe", "e.parquet", "--runs", "1", "--test", "val", "--val", "test", cwd=folder)
    assert json.loads(done.stdout)["metrics"]["n_test"] == 30


def test_dry_run(folder):
    done = pathfm("probe", "e.parquet", "-n", "-o", "new.parquet", cwd=folder)
    plan = json.loads(done.stdout)
    assert plan["rows"] == {"train": 60, "val": 30, "test": 30}
    assert (plan["batch_size"], plan["lr"]) == (256, 0.000625)
    writes = ["new.parquet", "new.json", "new.heads.safetensors", "new.predictions.parquet"]
    assert plan["writes"] == writes
    assert not list(folder.glob("new*"))


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script(1) for a terminal")
def test_a_terminal_gets_a_table(folder):
    command = f"{sys.executable} -m pathfm_cli probe e.parquet --runs 2"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], cwd=folder, capture_output=True, text=True
    )
    assert "balanced accuracy, protocol paper, 3 classes" in done.stdout
    assert "split       rows     mean      sd   runs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["e.parquet", "--protocol", "papr"], 2, "no protocol 'papr'"),
        (["e.parquet", "--runs", "0"], 2, "--runs"),
        (["e.parquet", "--test", "tset"], 2, "no split 'tset'"),
        (["e.parquet", "--device", "tpu"], 2, "no device 'tpu'"),
        (["e.parquet", "--method", "knm"], 2, "no method 'knm'"),
        (["e.parquet", "--folds", "1"], 2, "--folds 1"),
        (["e.parquet", "--folds", "2.5"], 2, "--folds 2.5 is no whole number"),
        (["e.parquet", "--by", "slide"], 2, "no column 'slide' to keep rows together by (it has"),
        (["taken"], 3, "taken is a folder, and no run"),
        (["e.parquet", "--folds", "3"], 2, "no column 'group'"),
        (["e.parquet", "--reference", "paper"], 2, "needs to know the data set"),
        (["e.parquet", "--compare", "absent"], 3, "absent does not exist"),
        (["e.parquet", "--compare", "e.parquet"], 3, "is of kind embeddings"),
        (["e.parquet", "-o", "taken"], 2, "holds no pathfm scores"),
        (["strange.parquet"], 3, "labels that train lacks: z"),
        (["z.npy"], 3, "no column `label`"),
        (["absent.parquet"], 3, "does not exist"),
    ],
)
def test_wrong_input(folder, arguments, code, message):
    done = pathfm("probe", *arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("pathfm: ") and message in lines[0]
    assert lines[1].startswith("hint: ") and len(lines) == 2


def test_a_comparison_and_a_reference_change_nothing_in_the_artifact(folder):
    named = {"task": "bach", "model": "kaiko-s16", "classes": ["a", "b", "c"]}
    header = artifacts.Header(kind="embeddings", settings=named)
    frame = artifacts.read_table(folder / "e.parquet").frame
    artifacts.write_table(folder / "n.parquet", frame, header)
    made = ("probe", "n.parquet", "--runs", "1", "-o", "made")
    assert pathfm(*made, cwd=folder).returncode == 0
    before = (folder / "made" / "scores.parquet").read_bytes()
    done = pathfm(*made, "--compare", "made", "--reference", "paper", cwd=folder)
    metrics = json.loads(done.stdout)["metrics"]
    assert (metrics["difference"], metrics["p_mcnemar"], metrics["p_bootstrap"]) == (0, 1, 1)
    assert metrics["compared_images"] == 30 and metrics["reference"] == 0.797
    assert metrics["balanced_accuracy"] > 0.9 and metrics["reference_passed"] == 0
    assert done.returncode == 5 and "FAIL: DINO ViT-S16 (ours) on bach" in done.stderr
    assert (folder / "made" / "scores.parquet").read_bytes() == before
    done = pathfm("probe", "n.parquet", "--method", "knn", "--reference", "paper", cwd=folder)
    assert done.returncode == 2 and "--method knn, not linear" in done.stderr


def test_other_images_are_refused_before_training(folder):
    table = artifacts.read_table(folder / "e.parquet").frame
    renamed = table.with_columns(id=pl.concat_str(pl.lit("x"), "id"))
    renamed.write_parquet(folder / "renamed.parquet")
    relabelled = table.with_columns(label=pl.col("label").replace({"a": "q"}))
    relabelled.write_parquet(folder / "relabelled.parquet")
    knn = ("--method", "knn")
    assert pathfm("probe", "e.parquet", *knn, "-o", "first", cwd=folder).returncode == 0
    for name, message in (("renamed", "no image in common"), ("relabelled", "other classes")):
        arguments = ("probe", f"{name}.parquet", *knn, "--compare", "first", "-o", "second")
        done = pathfm(*arguments, cwd=folder)
        assert done.returncode == 3 and message in done.stderr
        assert not (folder / "second").exists()
