from __future__ import annotations

import json
import statistics

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from sklearn import metrics as sklearn_metrics

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import features, probe, protocols


def embeddings(folder, val=True, name="e.parquet"):
    """Three classes in 8 dimensions, hard enough that the runs differ."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 8))
    labels = rng.integers(0, 3, 400)
    z = (centres[labels] + 2 * rng.standard_normal((400, 8))).astype(np.float32)
    splits = ["train"] * 200 + ["val" if val else "test"] * 100 + ["test"] * 100
    names = np.array(["stroma", "tumour", "adipose"])[labels]
    series = pl.Series(z, dtype=pl.Array(pl.Float32, 8))
    pl.DataFrame({"embedding": series, "label": names, "split": splits}).write_parquet(
        folder / name
    )
    return features.open_features(folder / name)


def test_the_artifact_holds_what_its_heads_score(tmp_path):
    source = embeddings(tmp_path)
    result = probe.probe(source, tmp_path / "out", protocols.Config(runs=3))
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    heads = safetensors.numpy.load_file(tmp_path / "out" / "heads.safetensors")
    assert heads["weight"].shape == (3, 3, 8) and heads["bias"].shape == (3, 3)
    assert document["classes"] == ["adipose", "stroma", "tumour"]
    table = artifacts.read_table(tmp_path / "out" / "scores.parquet", "scores").frame
    frame = pl.read_parquet(source.path).filter(split="test")
    z, truth = frame["embedding"].to_numpy(), frame["label"].to_list()
    scores = []
    for run in range(3):
        logits = z @ heads["weight"][run].T + heads["bias"][run]
        predicted = [document["classes"][i] for i in logits.argmax(axis=1)]
        scores.append(sklearn_metrics.balanced_accuracy_score(truth, predicted))
    rows = table.filter(pl.col("metric") == "balanced_accuracy", pl.col("split") == "test")
    assert rows.filter(pl.col("run").is_not_null())["value"].to_list() == pytest.approx(scores)
    assert len(set(scores)) > 1
    metrics = result.record["metrics"]
    assert metrics["balanced_accuracy"] == pytest.approx(statistics.fmean(scores))
    assert metrics["balanced_accuracy_std"] == pytest.approx(np.std(scores, ddof=1))
    assert (metrics["n_train"], metrics["n_val"], metrics["n_test"]) == (200, 100, 100)
    assert document["selected_on"] == "val" and document["std_ddof"] == 1
    ends = [metrics[f"balanced_accuracy_{end}"] for end in ("low", "high")]
    assert ends[0] < metrics["balanced_accuracy"] < ends[1]
    assert 0.1 < ends[1] - ends[0] < 0.3, "100 images: about 2 x 1.96 x 0.05"
    assert document["settings"]["protocol"]["batch_size"] == 4096
    assert (document["schedule"]["batch_size"], document["schedule"]["lr"]) == (256, 6.25e-4)


def test_a_rerun_is_up_to_date_and_other_settings_clash(tmp_path):
    source, out = embeddings(tmp_path), tmp_path / "p.parquet"
    config = protocols.Config(runs=1)
    record = probe.probe(source, out, config).record
    before = out.read_bytes()
    again = probe.probe(source, out, config)
    assert again.notes == ("up to date",) and again.record["id"] == record["id"]
    assert out.read_bytes() == before
    with pytest.raises(errors.OutputClash, match=r"runs=1 \(now 2\)"):
        probe.probe(source, out, protocols.Config(runs=2))
    other = probe.probe(source, out, protocols.Config(runs=2), overwrite=True)
    assert other.record["id"] != record["id"]


def test_run_r_of_seed_s_is_the_run_of_seed_s_plus_r(tmp_path):
    source = embeddings(tmp_path)
    many = probe.probe(source, tmp_path / "many", protocols.Config(runs=3, seed=5))
    one = probe.probe(source, tmp_path / "one", protocols.Config(runs=1, seed=7))
    table = pl.read_parquet(many.record["path"]).filter(pl.col("run") == 2).drop("run")
    alone = pl.read_parquet(one.record["path"]).filter(pl.col("run") == 0).drop("run")
    assert table.equals(alone)


def test_one_run_has_no_deviation(tmp_path):
    result = probe.probe(embeddings(tmp_path), None, protocols.Config(runs=1))
    assert "balanced_accuracy_std" not in result.record["metrics"]
    assert "path" not in result.record


def test_without_val_the_warning_is_there(tmp_path):
    result = probe.probe(embeddings(tmp_path, val=False), None, protocols.Config(runs=1))
    assert "chosen on test" in result.notes[0]
    assert "val_balanced_accuracy" not in result.record["metrics"]


def test_what_chooses_the_state(tmp_path):
    source = embeddings(tmp_path)
    by_test = probe.probe(source, tmp_path / "t", protocols.Config(runs=2, select="test"))
    assert by_test.notes[0].startswith("--select test: ") and "optimistic" in by_test.notes[0]
    document = json.loads((tmp_path / "t" / "scores.json").read_text())
    assert document["selected_on"] == "test" == document["reported_on"]
    assert "val_balanced_accuracy" in by_test.record["metrics"]
    by_val = probe.probe(source, None, protocols.Config(runs=2))
    found = [one.record["metrics"]["balanced_accuracy"] for one in (by_test, by_val)]
    assert found[0] >= found[1] and by_val.notes == ()
    last = probe.probe(source, tmp_path / "l", protocols.Config(runs=1, select="last"))
    assert last.notes == ()
    table = pl.read_parquet(last.record["path"])
    assert table.filter(metric="best_step").rows() == [("best_step", "", 0, 12_500.0)]
    alone = probe.probe(
        embeddings(tmp_path, val=False, name="n.parquet"),
        None,
        protocols.Config(runs=1, select="last"),
    )
    assert alone.notes == ()


@pytest.mark.parametrize("name", ["eva-0.0.2", "eva-0.4"])
def test_other_protocols_reach_similar_scores(tmp_path, name):
    source = embeddings(tmp_path)
    found = probe.probe(source, None, protocols.Config(runs=1, protocol=name)).record["metrics"]
    paper = probe.probe(source, None, protocols.Config(runs=1)).record["metrics"]
    assert found["balanced_accuracy"] == pytest.approx(paper["balanced_accuracy"], abs=0.06)


def test_plan_says_what_follows(tmp_path):
    plan = probe.plan(embeddings(tmp_path), tmp_path / "out", protocols.Config())
    assert plan["rows"] == {"train": 200, "val": 100, "test": 100}
    assert (plan["batch_size"], plan["steps"], plan["steps_per_epoch"]) == (256, 12_500, 1)
    assert [path.rpartition("/")[2] for path in plan["writes"]] == [
        "scores.parquet",
        "scores.json",
        "heads.safetensors",
        "predictions.parquet",
    ]


def test_splits_must_differ():
    with pytest.raises(errors.UsageError):
        protocols.Config(train="a", test="a")
