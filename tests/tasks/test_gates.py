from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pathfm_cli import errors
from pathfm_cli.tasks import features, gates, odcorr


@pytest.mark.parametrize(
    ("value", "limits", "fails"),
    [(0.5, (None, 0.5), False), (0.51, (None, 0.5), True), (0.1, (0.2, None), True)]
    + [(0.2, (0.2, 0.9), False), (math.nan, (None, 1.0), True), (math.nan, (0.0, None), True)],
)
def test_minimum_and_maximum(value, limits, fails):
    asked = gates.limits(*limits, None, None)
    if not fails:
        asked.check(value)
        return
    with pytest.raises(errors.GateFailed) as caught:
        asked.check(value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("limits", [(None, 1.5), (-0.1, None), (None, math.nan), (0.6, 0.5)])
def test_limits_nothing_can_meet(limits):
    with pytest.raises(errors.UsageError):
        gates.limits(*limits, None, None)


def record(**metrics):
    return {"kind": "scores", "metrics": {"odcorr": 0.4, "n": 20, **metrics}}


def baseline(tmp_path, document, tolerance=0.02):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    return gates.limits(None, None, path, tolerance)


@pytest.mark.parametrize(("value", "fails"), [(0.42, False), (0.1, False), (0.4201, True)])
def test_a_baseline_is_missed_only_upwards(tmp_path, value, fails):
    limits = baseline(tmp_path, record(odcorr=0.4))
    if not fails:
        limits.check(value)
        return
    with pytest.raises(errors.GateFailed, match=r"0\.0201 above the 0\.4000 of .*old\.json"):
        limits.check(value)


def test_a_baseline_of_other_images_is_refused(tmp_path):
    settings = {"split": "test", "scored": {"images": "patches:a"}}
    limits = baseline(tmp_path, {**record(), "settings": settings})
    limits.comparable("test", "patches:a")
    limits.comparable("test", "")
    for given, words in (
        ((None, "patches:a"), "split test, now all"),
        (("test", "patches:b"), "images patches:a, now patches:b"),
    ):
        with pytest.raises(errors.UsageError, match=words):
            limits.comparable(*given)
    baseline(tmp_path, record()).comparable("test", "patches:b")
    gates.limits(None, None, None, None).comparable("test", "patches:b")


def test_a_baseline_of_other_rows_is_refused_counting_constant_ones(tmp_path):
    limits = baseline(tmp_path, record(n=18, constant_rows=2))
    limits.same_rows(20)
    baseline(tmp_path, record()).same_rows(20)
    gates.limits(None, None, None, None).same_rows(7)
    with pytest.raises(errors.UsageError, match="rows 20, now 18"):
        limits.same_rows(18)


@pytest.mark.parametrize("gate", [(0.1, None), (None, 0.9)])
def test_a_gate_fails_above_one_per_cent_of_constant_rows(gate):
    asked = gates.limits(*gate, None, None)
    asked.check_constant(100, 1)
    with pytest.raises(errors.GateFailed, match=r"2 of 100 embeddings are constant \(2\.0 %\)"):
        asked.check_constant(100, 2)


def test_the_limit_on_constant_rows_can_be_set(tmp_path):
    gates.limits(None, None, None, None).check_constant(100, 97)
    gates.limits(None, 0.9, None, None, 0.5).check_constant(100, 50)
    for asked in (gates.limits(None, None, None, None, 0.0), baseline(tmp_path, record())):
        with pytest.raises(errors.GateFailed):
            asked.check_constant(50, 1)
    with pytest.raises(errors.UsageError, match="--max-constant 2 is not") as caught:
        gates.limits(None, None, None, None, 2.0)
    assert caught.value.hint == "--max-constant 0.5"


def test_all_forms_of_a_result_are_baselines(tmp_path):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).standard_normal((20, 6)))
    source = features.open_features(tmp_path / "z.npy")
    expected = odcorr.odcorr(source, tmp_path / "o.parquet").record["metrics"]["odcorr"]
    odcorr.odcorr(source, tmp_path / "folder")
    for name in ("o.parquet", "o.json", "folder", "folder/scores.json"):
        found = gates.limits(None, None, tmp_path / name, 0.0).baseline
        assert (found.odcorr, found.rows, found.split) == (expected, 20, "")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"kind": "slides"}', json.dumps(record(odcorr="high")), "NaN"]
    + [json.dumps(record(odcorr=7.0)), json.dumps({"kind": "scores", "metrics": {"n": 3}})]
    + [json.dumps({**record(), "settings": 3}), json.dumps({**record(), "settings": None})],
)
def test_a_damaged_baseline_is_one_sentence(tmp_path, text):
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(errors.InputError, match="old.json"):
        gates.limits(None, None, tmp_path / "old.json", 0.1)


def test_a_baseline_needs_a_tolerance(tmp_path):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(record()))
    for given in ((old, None), (None, 0.1), (old, -0.1), (old, math.nan)):
        with pytest.raises(errors.UsageError, match="--tolerance"):
            gates.limits(None, None, *given)
    with pytest.raises(errors.InputError, match="does not exist"):
        gates.limits(None, None, tmp_path / "absent.json", 0.1)
