from __future__ import annotations

import dataclasses
import json
import statistics

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from scipy import special
from sklearn import metrics as sklearn_metrics

from pathfm_cli import artifacts, errors
from pathfm_cli.data import draw
from pathfm_cli.tasks import features, fitting, methods, predictions, probe, protocols, scores


@pytest.fixture
def short(monkeypatch):
    """The paper's protocol with 300 steps at a higher rate."""
    protocol = dataclasses.replace(protocols.find("paper"), name="short", steps=300, lr=0.3)
    monkeypatch.setitem(protocols.PROTOCOLS, "short", protocol)
    fast = dataclasses.replace(protocol, name="fast", lr=3.0)
    monkeypatch.setitem(protocols.PROTOCOLS, "fast", fast)


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


def test_predictions_lie_beside_the_scores_and_make_them(tmp_path, short):
    result = probe.probe(
        embeddings(tmp_path), tmp_path / "out", protocols.Config(protocol="short", runs=2)
    )
    found = predictions.read(tmp_path / "out")
    assert found.probability_RNC.shape == (2, 100, 3) and found.ids is None
    names = np.array(found.classes)
    right = [
        sklearn_metrics.balanced_accuracy_score(names[found.truth_N], names[one])
        for one in found.predicted_RN
    ]
    metrics = result.record["metrics"]
    assert np.mean(right) == pytest.approx(metrics["balanced_accuracy"])
    assert found.probability_RNC.sum(2) == pytest.approx(1.0, abs=1e-5)
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    squares = np.square(found.probability_RNC - np.eye(3)[found.truth_N]).sum(2).mean()
    assert document["calibration"]["brier"] == pytest.approx(squares, abs=1e-5)
    assert sum(document["calibration"]["count"]) == 200
    again = probe.probe(
        embeddings(tmp_path), tmp_path / "out", protocols.Config(protocol="short", runs=2)
    )
    assert again.notes == ("up to date",) and again.predicted is not None
    assert again.predicted.predicted_RN.tolist() == found.predicted_RN.tolist()
    other = tmp_path / "out" / "predictions.parquet"
    header = artifacts.Header(kind="predictions", parents=("scores:0",), settings={})
    artifacts.write_table(other, pl.read_parquet(other), header)
    with pytest.raises(errors.InputError, match="belongs to other scores"):
        predictions.read(tmp_path / "out")


def test_convergence_and_other_learning_rates_are_shown(tmp_path, short):
    source = embeddings(tmp_path)
    config = protocols.Config(protocol="short", runs=2, lr_scales=(0.1, 10.0))
    result = probe.probe(source, tmp_path / "out", config)
    plain = probe.probe(source, None, protocols.Config(protocol="short", runs=2))
    same = ("balanced_accuracy", "val_balanced_accuracy", "ece", "brier")
    for name in same:
        assert result.record["metrics"][name] == plain.record["metrics"][name]
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    shown = document["lr_sensitivity"][0]
    assert [one["lr_scale"] for one in shown] == [0.1, 1.0, 10.0]
    assert shown[1]["balanced_accuracy"]["test"] == pytest.approx(
        result.record["metrics"]["balanced_accuracy"]
    )
    # The protocol at ten times the rate, run alone, is the row of the batched computation.
    fast = probe.probe(source, None, protocols.Config(runs=2, protocol="fast"))
    assert shown[2]["balanced_accuracy"]["test"] == pytest.approx(
        fast.record["metrics"]["balanced_accuracy"], abs=0.011
    )
    curve = document["curves"][0]
    assert len(curve["step"]) == len(curve["score"]) <= 201
    table = pl.read_parquet(result.record["path"])
    stopped = table.filter(metric="stopped_step")["value"].to_list()
    assert curve["step"][-1] == max(stopped)
    best = max(value[0] for value in curve["score"] if value[0] is not None)
    chosen = table.filter(metric="balanced_accuracy", split="val", run=0)["value"][0]
    assert best <= chosen + 1e-12
    loss = table.filter(metric="train_loss")["value"].to_list()
    heads = safetensors.numpy.load_file(tmp_path / "out" / "heads.safetensors")
    frame = pl.read_parquet(source.path).filter(split="train")
    truth = [document["classes"].index(name) for name in frame["label"]]
    for run in range(2):
        logits = frame["embedding"].to_numpy() @ heads["weight"][run].T + heads["bias"][run]
        peer = sklearn_metrics.log_loss(truth, special.softmax(logits.astype(np.float64), 1))
        assert loss[run] == pytest.approx(peer, rel=1e-4)


def test_other_methods_have_one_run_unless_shots_are_drawn(tmp_path):
    source = embeddings(tmp_path)
    for method in ("knn", "logreg", "simpleshot"):
        found = probe.probe(source, None, protocols.Config(method=method))
        assert found.record["metrics"]["runs"] == 1
        assert "runs" in found.notes[0]
        assert 0.4 < found.record["metrics"]["balanced_accuracy"] < 0.9
    few = probe.probe(source, tmp_path / "f", protocols.Config(method="simpleshot", shots=5))
    assert few.record["metrics"]["runs"] == 5
    assert few.record["metrics"]["balanced_accuracy_std"] > 0
    with pytest.raises(errors.InputError, match=r"images in train, fewer than --shots 100"):
        probe.probe(source, None, protocols.Config(shots=100))


def test_a_linear_probe_of_few_shots_is_that_of_those_rows(tmp_path, short):
    source = embeddings(tmp_path)
    config = protocols.Config(protocol="short", shots=4, runs=2, select="last")
    probe.probe(source, tmp_path / "few", config)
    frame = pl.read_parquet(source.path).with_row_index()
    train = frame.filter(split="train")
    labels = np.unique(train["label"].to_numpy(), return_inverse=True)[1]
    at = methods.draw_shots(labels, 4, draw.rng(1, 0, fitting.SHOTS))
    only = pl.concat([train[at], frame.filter(split="test")]).drop("index")
    only.write_parquet(tmp_path / "only.parquet")
    alone = features.open_features(tmp_path / "only.parquet")
    probe.probe(
        alone, tmp_path / "one", protocols.Config(protocol="short", runs=1, seed=1, select="last")
    )
    heads = [
        safetensors.numpy.load_file(tmp_path / n / "heads.safetensors") for n in ("few", "one")
    ]
    np.testing.assert_allclose(heads[0]["weight"][1], heads[1]["weight"][0], atol=1e-5)


def test_folds_report_every_image_once(tmp_path):
    source = embeddings(tmp_path)
    frame = pl.read_parquet(source.path).with_columns(
        id=pl.int_range(400).cast(pl.String), group=(pl.int_range(400) // 4).cast(pl.String)
    )
    frame.write_parquet(tmp_path / "g.parquet")
    source = features.open_features(tmp_path / "g.parquet")
    config = protocols.Config(method="knn", folds=4)
    result = probe.probe(source, tmp_path / "out", config)
    found = predictions.read(tmp_path / "out")
    assert sorted(found.ids) == sorted(frame["id"]) and len(np.unique(found.units_N)) == 100
    table = pl.read_parquet(result.record["path"])
    folds = [f"fold {number}" for number in range(4)]
    by_fold = table.filter(metric="accuracy", run=0).filter(pl.col("split").is_in(folds))
    assert by_fold["split"].to_list() == folds
    assert np.mean(by_fold["value"].to_list()) == pytest.approx(
        result.record["metrics"]["accuracy"]
    ), "folds of the same size"
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [one["test"] for one in document["folds"]] == [100] * 4
    assert np.sum(document["confusion"]["test"]) == 400


def named(folder, **settings):
    """The embeddings of `embeddings` as an artifact that says what they are."""
    frame = pl.read_parquet(embeddings(folder).path).with_columns(
        error=pl.lit(None, pl.String), id=pl.int_range(400).cast(pl.String)
    )
    header = artifacts.Header(kind="embeddings", settings=settings)
    artifacts.write_table(folder / "own.parquet", frame, header)
    return features.open_features(folder / "own.parquet")


def test_scores_say_what_was_scored_and_that_a_part_compares_with_nothing(tmp_path):
    how = {"task": "bach", "partial": True, "model": "uni", "embedding": "cls", "mean": [0.5]}
    how |= {"std": [0.2], "resize": "none", "precision": "bf16", "image_size_px": 224}
    source = named(tmp_path, classes=["stroma"], **how)
    config = protocols.Config(method="knn")
    said = "bach is not complete: scores do not compare"
    for _ in range(2):  # made, and found up to date
        scores.check_free(tmp_path / "out", config.settings())
        result = probe.probe(source, tmp_path / "out", config)
        assert said in result.notes
    assert "up to date" in result.notes
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert document["settings"]["scored"] == how and said in document["notes"]


@pytest.mark.parametrize("method", ["knn", "simpleshot"])
def test_what_chooses_nothing_is_not_optimistic_and_trains_on_all_other_folds(tmp_path, method):
    plain = probe.probe(
        embeddings(tmp_path, val=False), tmp_path / "out", protocols.Config(method=method)
    )
    assert not any("optimistic" in note for note in plain.notes)
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert document["selected_on"] is None and "select" not in document["settings"]
    config = protocols.Config(method=method, folds=4, by="id")
    probe.probe(named(tmp_path), tmp_path / "folds", config)
    document = json.loads((tmp_path / "folds" / "scores.json").read_text())
    for fold in document["folds"]:
        assert "val" not in fold and fold["train"] + fold["test"] == 400
    with pytest.raises(errors.UsageError, match="nothing to choose"):
        protocols.Config(method=method, select="test")


@pytest.mark.parametrize("method", protocols.METHODS)
def test_embeddings_whose_norm_is_no_float32_are_refused(tmp_path, short, method):
    frame = pl.read_parquet(embeddings(tmp_path).path)
    for factor in (1e25, 1e300):
        large = frame["embedding"].to_numpy().astype(np.float64)
        large[7] *= factor
        frame.with_columns(embedding=pl.Series(large, dtype=pl.Array(pl.Float64, 8))).write_parquet(
            tmp_path / "large.parquet"
        )
        source = features.open_features(tmp_path / "large.parquet")
        with pytest.raises(errors.InputError, match="row 7 is too large"):
            probe.probe(source, None, protocols.Config(method=method, runs=1, protocol="paper"))


def test_heads_that_diverged_are_no_scores(tmp_path, short, monkeypatch):
    frame = pl.read_parquet(embeddings(tmp_path).path)
    large = frame["embedding"].to_numpy() * np.float32(1e18)
    frame.with_columns(embedding=pl.Series(large, dtype=pl.Array(pl.Float32, 8))).write_parquet(
        tmp_path / "large.parquet"
    )
    source = features.open_features(tmp_path / "large.parquet")
    found = probe.probe(source, None, protocols.Config(runs=1, protocol="short"))
    assert any(note.startswith("1 of 1 runs diverged") for note in found.notes)
    wild = dataclasses.replace(protocols.find("short"), lr=1e6)
    monkeypatch.setitem(protocols.PROTOCOLS, "short", wild)
    with pytest.raises(errors.PathfmError, match="diverged") as caught:
        probe.probe(source, tmp_path / "out", protocols.Config(runs=1, protocol="short"))
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()


def test_embeddings_of_zeros_are_told(tmp_path):
    frame = pl.read_parquet(embeddings(tmp_path).path)
    zeros = np.zeros((400, 8), np.float32)
    frame.with_columns(embedding=pl.Series(zeros, dtype=pl.Array(pl.Float32, 8))).write_parquet(
        tmp_path / "zeros.parquet"
    )
    source = features.open_features(tmp_path / "zeros.parquet")
    found = probe.probe(source, None, protocols.Config(method="knn"))
    assert "400 embeddings are all zeros: they tell nothing" in found.notes


def test_a_learning_rate_that_diverged_has_no_score(tmp_path, short):
    config = protocols.Config(protocol="short", runs=1, lr_scales=(1e6,))
    result = probe.probe(embeddings(tmp_path), tmp_path / "out", config)
    assert any("learning rate x 1e+06 diverged" in note for note in result.notes)
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    own, other = document["lr_sensitivity"][0]
    assert other["balanced_accuracy"] == {"val": None, "test": None}
    assert own["balanced_accuracy"]["test"] > 0.4
    assert "diverged" in "".join(result.lines)
    for scale in (1e30, 1e-7):
        with pytest.raises(errors.UsageError, match=r"1e-06\.\.1e\+06"):
            protocols.Config(lr_scales=(scale,))


def test_few_shots_diverge_on_their_own_rows_only(tmp_path, short):
    """Rows that two images a class do not explain say nothing of the training."""
    config = protocols.Config(protocol="short", runs=2, shots=2, select="last", lr_scales=(30.0,))
    found = probe.probe(embeddings(tmp_path), None, config)
    assert not any("diverged" in note for note in found.notes)
