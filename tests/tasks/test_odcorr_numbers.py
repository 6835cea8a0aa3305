from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import features, odcorr


def definition(z):
    """Equation 1 by numpy's own correlation coefficients of all pairs of rows."""
    rho = np.corrcoef(z.astype(np.float64))
    n = len(z)
    return math.sqrt((rho[~np.eye(n, dtype=bool)] ** 2).sum() / (n * (n - 1)))


def rankme(z):
    """RankMe's equation 1, by singular values."""
    s = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    p = s / s.sum() + 1e-7
    return math.exp(-(p * np.log(p)).sum())


def matrices():
    rng = np.random.default_rng(5)
    normal = rng.standard_normal((300, 40))
    yield "normal, N > K", normal
    yield "normal, N < K", normal.T.copy()
    yield "N = K", rng.standard_normal((50, 50))
    yield "N = K + 1", rng.standard_normal((51, 50))
    yield "two rows", rng.standard_normal((2, 10))
    yield "correlated", normal * 0.01 + rng.standard_normal(40)
    yield "large offset", normal + 1e4
    orthogonal = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    yield "near-orthogonal, N < K", orthogonal[:60] - orthogonal[:60].mean(1, keepdims=True)
    yield "near-orthogonal, N > K", np.concatenate([orthogonal, -orthogonal])[:100]
    yield "rank 3", rng.standard_normal((200, 3)) @ rng.standard_normal((3, 30))
    yield "float32", normal.astype(np.float32)
    yield "tiny", normal * 1e-30


@pytest.mark.parametrize(("name", "z"), list(matrices()), ids=[n for n, _ in matrices()])
def test_equals_the_definitions(name, z):
    blocks = [z[:7], z[7:23], z[23:]] if len(z) > 23 else [z]
    found = odcorr.measure(blocks, *z.shape)
    assert found.odcorr == pytest.approx(definition(z), abs=1e-12)
    assert found.rankme == pytest.approx(rankme(z), rel=1e-6)
    assert (found.n, found.k, found.constant_rows) == (*z.shape, 0)
    assert found.gram_side == min(z.shape)
    assert found.floor == pytest.approx(1 / math.sqrt(z.shape[1] - 1))


def test_three_rows_by_hand():
    # rho: (1,2) -> 1, (1,3) -> -1, (2,3) -> -1 up to sign; then rows 1 and 4 -> 0.
    z = np.array([[1.0, 2, 3], [2, 4, 6], [3, 2, 1]])
    assert odcorr.measure([z], 3, 3).odcorr == pytest.approx(1.0, abs=1e-15)
    z = np.array([[1.0, 0, -1, 0], [0, 1, 0, -1]])
    assert odcorr.measure([z], 2, 4).odcorr == 0.0
    z = np.array([[1.0, 2, 3], [1, 2, 3], [1, -2, 1]])
    assert odcorr.measure([z], 3, 3).odcorr == pytest.approx(math.sqrt(2 / 6))


@pytest.mark.parametrize("count", [20, 400])
def test_constant_rows_are_left_out_and_counted(count):
    rng = np.random.default_rng(1)
    z = rng.standard_normal((count, 100)).astype(np.float32)
    z[3], z[7], z[11] = 0.0, 1e5 / 3, np.float32(0.1)
    found = odcorr.measure([z[:10], z[10:]], *z.shape)
    clean = np.delete(z, [3, 7, 11], axis=0)
    assert (found.constant_rows, found.n) == (3, count - 3)
    assert found.odcorr == pytest.approx(definition(clean), abs=1e-12)
    assert found.rankme == pytest.approx(rankme(clean), rel=1e-9)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.7, 1e5 / 3, 1e-12])
@pytest.mark.parametrize("width", [97, 100, 1000])
def test_round_off_does_not_hide_a_constant_row(value, width):
    z = np.random.default_rng(1).standard_normal((20, width))
    z[5] = value
    assert odcorr.measure([z], *z.shape).constant_rows == 1


def test_a_large_mean_is_no_constant_row():
    z = 1e6 + np.random.default_rng(2).standard_normal((50, 10))
    assert odcorr.measure([z], 50, 10).constant_rows == 0


@pytest.mark.parametrize("z", [np.zeros((5, 4)), np.eye(4)[:1], np.ones((3, 1)), np.ones((9, 1))])
def test_fewer_than_two_usable_rows_is_an_error(z):
    with pytest.raises(errors.InputError, match="two rows that are not constant"):
        odcorr.measure([z], *z.shape)


def test_half_precision_does_not_overflow():
    z = (np.random.default_rng(3).standard_normal((60, 20)) * 1e4).astype(np.float16)
    assert odcorr.measure([z], 60, 20).odcorr == pytest.approx(definition(z), abs=1e-12)


@pytest.mark.parametrize(
    ("value", "limits", "fails"),
    [(0.5, (None, 0.5), False), (0.51, (None, 0.5), True), (0.1, (0.2, None), True)]
    + [(0.2, (0.2, 0.9), False), (math.nan, (None, 1.0), True), (math.nan, (0.0, None), True)],
)
def test_gate(value, limits, fails):
    if not fails:
        odcorr.gate(value, *limits)
        return
    with pytest.raises(errors.GateFailed) as caught:
        odcorr.gate(value, *limits)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("limits", [(None, 1.5), (-0.1, None), (None, math.nan), (0.6, 0.5)])
def test_limits_nothing_can_meet(limits):
    with pytest.raises(errors.UsageError):
        odcorr.check_limits(*limits)


def test_scores_artifact(tmp_path):
    z = np.random.default_rng(4).standard_normal((50, 6)).astype(np.float32)
    frame = pl.DataFrame({"embedding": pl.Series(z, dtype=pl.Array(pl.Float32, 6))})
    frame = frame.with_columns(split=pl.Series(["train"] * 30 + ["test"] * 20))
    frame.write_parquet(tmp_path / "e.parquet")
    source = features.open_features(tmp_path / "e.parquet")
    out = tmp_path / "o.parquet"
    record = odcorr.odcorr(source, out, split="test").record
    table = artifacts.read_table(out, "scores")
    values = dict(table.frame.select("metric", "value").iter_rows())
    assert values["odcorr"] == pytest.approx(definition(z[30:]), abs=1e-12)
    assert record["metrics"] == {**values, "seconds": record["metrics"]["seconds"]}
    assert set(table.frame["split"]) == {"test"}
    assert record["id"] == odcorr.odcorr(source, None, split="test").record["id"]
    again = odcorr.odcorr(source, out, split="test")
    assert (again.record, again.notes) == (record, ("up to date",))
    with pytest.raises(errors.OutputClash, match="split=test"):
        odcorr.odcorr(source, out)
