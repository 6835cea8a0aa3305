from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import features, labelled
from pathfm_cli.tasks.datasets import catalogue

ROLES = {"train": "train", "val": "val", "test": "test"}


def source(folder, labels, splits, **columns):
    vectors = pl.Series(np.ones((len(labels), 2), np.float32), dtype=pl.Array(pl.Float32, 2))
    frame = pl.DataFrame({"embedding": vectors, "label": labels, "split": splits, **columns})
    frame.write_parquet(folder / "e.parquet")
    return features.open_features(folder / "e.parquet")


def test_three_splits(tmp_path):
    splits = ["test", "train", "valid", "train", "train", "test"]
    data = labelled.prepare(source(tmp_path, list("bacbca"), splits), ROLES)
    assert data.classes == ("a", "b", "c")
    assert {role: rows.tolist() for role, rows in data.rows.items()} == {
        "train": [1, 3, 4],
        "val": [2],
        "test": [0, 5],
    }
    assert {role: y.tolist() for role, y in data.labels.items()} == {
        "train": [0, 1, 2],
        "val": [2],
        "test": [1, 0],
    }
    assert (data.select, data.report, data.names["val"]) == ("val", "test", "valid")
    assert [note.partition(":")[0] for note in data.notes] == [
        "val has no rows of a, b",
        "test has no rows of c",
    ]


def test_integers_sort_by_size(tmp_path):
    data = labelled.prepare(source(tmp_path, [10, 9, 10], ["train", "train", "test"]), ROLES)
    assert data.classes == ("9", "10")
    assert data.labels["test"].tolist() == [1]


def test_one_split_does_two_jobs_and_says_so(tmp_path):
    splits = ["train", "train", "test", "other"]
    data = labelled.prepare(source(tmp_path, list("abab"), splits), ROLES)
    assert (data.select, data.report) == ("test", "test")
    assert "optimistic" in data.notes[0] and "other" in data.notes[1]
    splits = ["train", "train", "val", "val"]
    data = labelled.prepare(source(tmp_path, list("abab"), splits), ROLES)
    assert (data.select, data.report) == ("val", "val")
    assert "no split test" in data.notes[0]


def test_other_names(tmp_path):
    splits = ["fold1", "fold1", "fold2", "fold2"]
    wanted = {"train": "fold1", "val": "val", "test": "fold2"}
    data = labelled.prepare(source(tmp_path, list("abab"), splits), wanted)
    assert dict(data.names) == {"train": "fold1", "test": "fold2"}
    with pytest.raises(errors.UsageError, match="no split 'fold3'"):
        labelled.prepare(data.source, {**wanted, "test": "fold3"})


def test_rows_that_cannot_take_part_are_counted(tmp_path):
    splits = ["train", "train", "train", "test", "test"]
    broken = [None, None, "cut short", None, None]
    data = labelled.prepare(
        source(tmp_path, ["a", "b", "a", None, "a"], splits, error=broken), ROLES
    )
    assert data.rows["train"].tolist() == [0, 1] and data.rows["test"].tolist() == [4]
    assert "1 rows without an embedding are left out" in data.notes
    assert "1 rows without a label are left out" in data.notes


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        (list("abz"), ["train", "train", "test"], "labels that train lacks: z"),
        (list("aaa"), ["train", "train", "test"], "one class in train"),
        (list("abb"), ["train", "train", "holdout"], "it has holdout, train"),
        (list("abb"), ["test", "test", "test"], "needs a split train"),
        ([0.5, 1.5, 0.5], ["train", "train", "test"], "labels are Float64"),
        (["a", "b", None], ["train", "train", "test"], "no row with a label and an embedding"),
        (["a", "b", "a"], [None, None, None], "it has none"),
    ],
)
def test_what_cannot_be_probed(tmp_path, labels, splits, message):
    with pytest.raises(errors.InputError, match=message):
        labelled.prepare(source(tmp_path, labels, splits), ROLES)


@pytest.mark.parametrize("column", ["label", "split"])
def test_a_missing_column_is_named(tmp_path, column):
    full = source(tmp_path, list("abab"), ["train", "train", "test", "test"])
    pl.read_parquet(full.path).drop(column).write_parquet(full.path)
    with pytest.raises(errors.InputError, match=f"no column `{column}`"):
        labelled.prepare(features.open_features(full.path), ROLES)


def test_units_are_groups_and_rows_without_one_stand_alone(tmp_path):
    splits = ["train", "train", "test", "test", "test", "test", "test"]
    labels = list("ababaab")
    grouped = source(tmp_path, labels, splits, group=["p", "q", "r", "s", "r", None, None])
    data = labelled.prepare(grouped, ROLES)
    units = labelled.units(grouped, data.rows["test"]).tolist()
    assert units[0] == units[2] and len(set(units)) == 4 == max(units) + 1
    labelled.check_by(grouped, "group")
    with pytest.raises(errors.UsageError, match=r"no column 'slide' .* \(it has .*group\)"):
        labelled.check_by(grouped, "slide")
    plain = labelled.prepare(source(tmp_path, labels, splits), ROLES)
    assert labelled.units(plain.source, plain.rows["test"]).tolist() == [0, 1, 2, 3, 4]


def test_a_data_set_of_the_catalogue_keeps_its_order_of_classes(tmp_path):
    """MHIST numbers SSA 0 and HP 1; sorted by name it would be the other way round."""
    splits = ["train", "train", "train", "test"]
    vectors = pl.Series(np.ones((4, 2), np.float32), dtype=pl.Array(pl.Float32, 2))
    frame = pl.DataFrame(
        {
            "id": list("abcd"),
            "embedding": vectors,
            "error": pl.Series([None] * 4, dtype=pl.String),
            "label": ["HP", "SSA", "HP", "HP"],
            "split": splits,
        }
    )
    named = {"task": "mhist", "classes": list(catalogue.find("mhist").facts.classes)}
    for settings, classes in ((named, ("SSA", "HP")), ({"classes": ["SSA", "HP"]}, ("HP", "SSA"))):
        header = artifacts.Header(kind="embeddings", settings=settings)
        artifacts.write_table(tmp_path / "own.parquet", frame, header)
        data = labelled.prepare(features.open_features(tmp_path / "own.parquet"), ROLES)
        assert data.classes == classes
        assert [classes[y] for y in data.labels["train"]] == ["HP", "SSA", "HP"]
