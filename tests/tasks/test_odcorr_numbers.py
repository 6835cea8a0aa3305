from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import features, grams, odcorr


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


@pytest.mark.parametrize("shape", [(20, 100), (200, 30)])
@pytest.mark.parametrize("factor", [1e120, 1e-170, 1e-300])
def test_correlations_do_not_depend_on_the_size_of_a_row(shape, factor):
    # numpy.corrcoef squares 1e-170 to 0 as well, so it is asked about the rows of common size.
    z = np.random.default_rng(12).standard_normal(shape)
    scaled = z.copy()
    scaled[3:6] *= factor
    found = odcorr.measure([scaled[:5], scaled[5:]], *shape)
    assert (found.n, found.constant_rows) == (shape[0], 0)
    assert found.odcorr == pytest.approx(definition(z), abs=1e-12)


@pytest.mark.parametrize("shape", [(20, 100), (200, 30)])
@pytest.mark.parametrize(("factor", "words"), [(1e200, "too large"), (1e-170, "too small")])
def test_what_cannot_be_squared_is_not_called_constant(shape, factor, words):
    z = np.random.default_rng(13).standard_normal(shape) * factor
    with pytest.raises(errors.InputError, match=f"{words} to square in float64"):
        odcorr.measure([z], *shape)


def test_half_precision_does_not_overflow():
    z = (np.random.default_rng(3).standard_normal((60, 20)) * 1e4).astype(np.float16)
    assert odcorr.measure([z], 60, 20).odcorr == pytest.approx(definition(z), abs=1e-12)


@pytest.mark.parametrize(("name", "z"), list(matrices()), ids=[n for n, _ in matrices()])
def test_the_spectrum_is_the_variance_along_principal_directions(name, z):
    found = odcorr.measure([z[:7], z[7:]] if len(z) > 7 else [z], *z.shape)
    centred = z.astype(np.float64) - z.astype(np.float64).mean(axis=0)
    expected = np.linalg.svd(centred, compute_uv=False) ** 2 / len(z)
    assert len(found.variances_R) == min(z.shape)
    assert found.variances_R == pytest.approx(expected, rel=1e-7, abs=1e-12 * expected[0])
    numbers = found.numbers()
    assert numbers["top1"] == pytest.approx(expected[0] / expected.sum())
    assert numbers["top10"] == pytest.approx(expected[:10].sum() / expected.sum())


def test_alpha_of_a_known_power_law():
    # Orthogonal directions, the r-th with variance 4 r^-1.5: rows of length 1 / sqrt(N) each.
    rng = np.random.default_rng(7)
    basis = rng.standard_normal((500, 120))
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
    turn = np.linalg.qr(rng.standard_normal((120, 120)))[0]
    ranks = np.arange(1, 121)
    z = basis * np.sqrt(500 * 4 * ranks**-1.5) @ turn + 30
    found = odcorr.measure([z[:100], z[100:]], *z.shape)
    assert found.variances_R == pytest.approx(4 * ranks**-1.5, rel=1e-6)
    assert found.alpha.exponent == pytest.approx(1.5, abs=1e-6)
    assert (found.alpha.first, found.alpha.last) == (4, 100)


def test_alpha_is_a_weighted_line_through_ranks_4_to_100():
    z = np.random.default_rng(8).standard_normal((60, 200)) * np.arange(1, 201)
    found = odcorr.measure([z], *z.shape)
    ranks = np.arange(4, 60)  # 60 rows have 59 directions around their mean
    slope = np.polyfit(np.log(ranks), np.log(found.variances_R[3:59]), 1, w=np.sqrt(1 / ranks))[0]
    assert found.alpha.exponent == pytest.approx(-slope)
    assert (found.alpha.first, found.alpha.last) == (4, 59)


def test_a_short_spectrum_has_no_alpha():
    rng = np.random.default_rng(9)
    z = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 30))
    numbers = odcorr.measure([z], *z.shape).numbers()
    assert not {"alpha", "alpha_first", "alpha_last"} & set(numbers)


@pytest.mark.parametrize("rows", [6, 60])
def test_a_collapsed_encoder_has_no_variance(rows):
    z = np.tile(np.random.default_rng(10).standard_normal(20), (rows, 1)).astype(np.float32)
    numbers = odcorr.measure([z], *z.shape).numbers()
    assert numbers["odcorr"] == pytest.approx(1, abs=1e-12)
    assert numbers["rankme"] == pytest.approx(1, abs=1e-3)
    assert "top1" not in numbers and "alpha" not in numbers


def test_sums_on_a_device_are_those_of_numpy():
    import torch

    z = np.random.default_rng(11).standard_normal((300, 40))
    z[5], z[250:255], z[9] = 3.0, z[0], z[9] * 1e-200
    there = grams.DeviceGrams(40, torch.device("cpu"))
    here = grams.Grams(40)
    for block in (z[:5], z[5:6], z[6:128], z[128:]):
        there.add(block)
        here.add(block)
    one, two = there.finish(), here.finish()
    assert one.used == two.used == 299
    clean = np.delete(z, 5, axis=0)
    clean[8] *= 1e200
    assert one.off_diagonal == pytest.approx(definition(clean) ** 2 * 299 * 298, rel=1e-11)
    assert one.singular_R == pytest.approx(two.singular_R, rel=1e-9)
    assert one.variances_R == pytest.approx(two.variances_R, rel=1e-9)


def test_a_device_that_is_not_there(monkeypatch):
    z = np.zeros((9, 4), np.float32)
    with pytest.raises(errors.UsageError, match="no device"):
        odcorr.measure([z], 9, 4, device="tpu")
    monkeypatch.setattr(odcorr, "DRIVERS", ("/nowhere",))
    z = np.random.default_rng(0).standard_normal((9, 4))
    assert odcorr.measure([z], 9, 4, device="auto").gpu is False


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
    spread = np.sort(np.linalg.eigvalsh(np.cov(z[30:].T.astype(np.float64), bias=True)))[::-1]
    assert json.loads((tmp_path / "o.json").read_text())["spectrum"] == pytest.approx(spread)
    assert set(table.frame["split"]) == {"test"}
    assert record["id"] == odcorr.odcorr(source, None, split="test").record["id"]
    again = odcorr.odcorr(source, out, split="test")
    assert (again.record, again.notes) == (record, ("up to date",))
    with pytest.raises(errors.OutputClash, match="split=test"):
        odcorr.odcorr(source, out)
