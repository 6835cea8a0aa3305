from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_cli import errors
from pathfm_cli.tasks import asked, features, folds


def source(folder, **columns):
    rows = len(columns["label"])
    vectors = pl.Series(np.ones((rows, 2), np.float32), dtype=pl.Array(pl.Float32, 2))
    pl.DataFrame({"embedding": vectors, **columns}).write_parquet(folder / "e.parquet")
    return features.open_features(folder / "e.parquet")


def patients(folder):
    """Ten patients of two classes, three images each."""
    names = [f"p{number}" for number in range(10) for _ in range(3)]
    labels = ["a" if int(name[1:]) < 6 else "b" for name in names]
    return source(folder, label=labels, group=names)


def test_every_row_is_reported_once_and_no_patient_is_on_both_sides(tmp_path):
    opened = patients(tmp_path)
    group = opened.table["group"].to_numpy()
    parts = folds.prepare(opened, 5, "group", "val")
    reported = np.concatenate([part.rows["test"] for part in parts])
    assert sorted(reported) == list(range(30))
    for part in parts:
        sides = [set(group[part.rows[role]]) for role in ("train", "val", "test")]
        assert [len(side) for side in sides] == [6, 2, 2]
        assert len(set.union(*sides)) == 10
        assert part.select == "val" and part.report == "test" and part.notes == ()
    assert folds.same_classes(parts) == ("a", "b")
    assert [part.names["test"] for part in parts] == [f"fold {n}" for n in range(5)]


def test_the_deal_does_not_depend_on_the_order_of_the_rows(tmp_path):
    opened = patients(tmp_path)
    rows = opened.rows()
    first = folds.deal(opened, rows, 3, "group")
    again = folds.deal(opened, rows[::-1].copy(), 3, "group")
    assert first.tolist() == again[::-1].tolist()
    by_class = {
        label: np.bincount(first[opened.table["label"].to_numpy() == label]).tolist()
        for label in "ab"
    }
    assert sorted(by_class["a"]) == [6, 6, 6] and sorted(by_class["b"]) == [3, 3, 6]


def test_a_column_names_the_folds(tmp_path):
    opened = source(tmp_path, label=list("ababab"), fold=[0, 0, 1, 1, None, None])
    parts = folds.prepare(opened, "fold", "group", "val")
    assert [part.rows["test"].tolist() for part in parts] == [[0, 1], [2, 3]]
    assert [part.rows["train"].tolist() for part in parts] == [[2, 3], [0, 1]]
    assert parts[0].select == "test" and "optimistic" in parts[0].notes[0]
    last = folds.prepare(opened, "fold", "group", "last")
    assert last[0].select is None and last[0].notes == ()


@pytest.mark.parametrize(
    ("columns", "arguments", "error", "message"),
    [
        ({"label": list("abab")}, (2, "group"), errors.UsageError, "no column 'group'"),
        ({"label": list("abab")}, ("fold", "group"), errors.UsageError, "no column 'fold'"),
        ({"label": list("abab"), "group": list("xxyy")}, (3, "group"), errors.InputError, "fewer"),
        ({"label": list("abab"), "fold": [1, 1, 1, 1]}, ("fold", ""), errors.InputError, "1 folds"),
        ({"label": list("aabb"), "fold": [1, 1, 2, 2]}, ("fold", ""), errors.InputError, "one cl"),
    ],
)
def test_what_cannot_be_folded(tmp_path, columns, arguments, error, message):
    with pytest.raises(error, match=message):
        folds.prepare(source(tmp_path, **columns), *arguments, "last")


def test_a_class_in_one_fold_alone_is_named(tmp_path):
    opened = source(tmp_path, label=list("abcabab"), fold=[1, 1, 1, 2, 2, 3, 3])
    with pytest.raises(errors.InputError, match="labels that train lacks: c"):
        folds.prepare(opened, "fold", "", "last")


def test_a_number_or_a_name():
    assert (asked.folds(None), asked.folds("5"), asked.folds("fold")) == (None, 5, "fold")
    with pytest.raises(errors.UsageError):
        asked.folds("1")
    assert asked.scales("0.1,10") == (0.1, 10.0) and asked.scales(None) == ()
    with pytest.raises(errors.UsageError):
        asked.scales("a,b")
