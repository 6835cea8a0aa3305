from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.tasks import features

VECTORS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]], dtype=np.float32)


def own(path, **columns):
    """An embeddings artifact of four rows, the third of which failed."""
    frame = pl.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "embedding": pl.Series(
                [[1.0, 2, 3], [4, 5, 6], None, [10, 11, 12]], dtype=pl.Array(pl.Float32, 3)
            ),
            "error": [None, None, "c: cannot be read", None],
            **columns,
        }
    )
    artifacts.write_table(path, frame, artifacts.Header(kind="embeddings", settings={"x": 1}))
    return path


def everything(source):
    return np.concatenate(list(source.chunks(source.rows())))


def test_own_file_leaves_out_error_rows(tmp_path):
    path = own(tmp_path / "e.parquet", split=["train", "valid", "train", "test"])
    source = features.open_features(path)
    assert (source.width, source.failed) == (3, 1)
    assert source.parent == f"embeddings:{artifacts.read_header(path).id}"
    assert source.rows().tolist() == [0, 1, 3]
    assert source.rows("train").tolist() == [0]
    assert source.rows("val").tolist() == [1]
    assert source.split_name("val") == "valid"
    np.testing.assert_array_equal(everything(source), VECTORS[[0, 1, 3]])


def test_matrix_keeps_the_order_asked_for(tmp_path):
    source = features.open_features(own(tmp_path / "e.parquet"))
    np.testing.assert_array_equal(source.matrix(np.array([3, 0, 1])), VECTORS[[3, 0, 1]])


@pytest.mark.parametrize(
    "dtype", [pl.List(pl.Float64), pl.Array(pl.Float32, 3), pl.List(pl.Float16)]
)
def test_foreign_parquet(tmp_path, dtype):
    path = tmp_path / "f.parquet"
    rows = [*VECTORS[:2].tolist(), None, VECTORS[3].tolist()]
    frame = pl.DataFrame({"embedding": pl.Series(rows, dtype=dtype), "label": ["x", "y", "x", "y"]})
    frame.write_parquet(path)
    source = features.open_features(path)
    assert (source.width, source.failed) == (3, 1)
    assert source.parent.startswith("file:")
    assert source.table.columns == ["usable", "label"]
    np.testing.assert_array_equal(everything(source), VECTORS[[0, 1, 3]])


def test_many_chunks_and_row_groups_stay_in_order(tmp_path):
    vectors = np.arange(30_000, dtype=np.float32).reshape(10_000, 3)
    series = pl.Series(vectors, dtype=pl.Array(pl.Float32, 3))
    path = tmp_path / "f.parquet"
    pl.DataFrame({"embedding": series}).write_parquet(path, row_group_size=999)
    rows = np.arange(1, 10_000, 7)
    source = features.open_features(path)
    np.testing.assert_array_equal(np.concatenate(list(source.chunks(rows))), vectors[rows])


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, order):
    np.save(tmp_path / "z.npy", np.asarray(VECTORS.astype(np.float16), order=order))
    np.testing.assert_array_equal(everything(features.open_features(tmp_path / "z.npy")), VECTORS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_safetensors(tmp_path, dtype):
    path = tmp_path / "z.safetensors"
    tensors = {"embeddings": torch.from_numpy(VECTORS).to(dtype), "other": torch.zeros(2, 2)}
    safetensors.torch.save_file(tensors, path)
    np.testing.assert_array_equal(everything(features.open_features(path)), VECTORS)


def test_parent_follows_the_content_of_a_foreign_file(tmp_path):
    for name, vectors in (("a", VECTORS), ("b", VECTORS), ("c", VECTORS + 1)):
        np.save(tmp_path / f"{name}.npy", vectors)
    a, b, c = (features.open_features(tmp_path / f"{name}.npy").parent for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_an_error(tmp_path, value):
    vectors = VECTORS.copy()
    vectors[2, 1] = value
    np.save(tmp_path / "z.npy", vectors)
    with pytest.raises(errors.InputError, match="row 2 holds NaN"):
        everything(features.open_features(tmp_path / "z.npy"))


def test_the_row_named_is_the_row_of_the_file(tmp_path):
    path = tmp_path / "f.parquet"
    rows = [[1.0, 2], [3, 4], [5, None], [7, 8]]
    split = ["train", "test", "test", "test"]
    pl.DataFrame({"embedding": rows, "split": split}).write_parquet(path)
    source = features.open_features(path)
    with pytest.raises(errors.InputError, match="row 2 holds NaN"):
        list(source.chunks(source.rows("test")))


def bad_files(folder):
    (folder / "text.parquet").write_text("no Parquet")
    pl.DataFrame({"embedding": [[1.0], [2.0, 3.0]]}).write_parquet(folder / "ragged.parquet")
    pl.DataFrame({"embedding": [[1, 2], [3, 4]]}).write_parquet(folder / "whole.parquet")
    pl.DataFrame({"vector": [[1.0, 2.0]]}).write_parquet(folder / "unnamed.parquet")
    frame = pl.DataFrame({"embedding": pl.Series([None, None], dtype=pl.List(pl.Float32))})
    frame.write_parquet(folder / "nulls.parquet")
    np.save(folder / "cube.npy", np.zeros((2, 2, 2)))
    np.save(folder / "object.npy", np.array([[object()]]), allow_pickle=True)
    np.save(folder / "cut.npy", np.zeros((100, 100)))
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:1000])
    tensors = {"a": torch.zeros(2, 2), "b": torch.zeros(3, 3)}
    safetensors.torch.save_file(tensors, folder / "two.safetensors")
    (folder / "cut.safetensors").write_bytes(b"\xff" * 20)
    header = artifacts.Header(kind="scores")
    columns = {"metric": ["m"], "split": [""], "run": [0], "value": [0.0]}
    artifacts.write_table(folder / "scores.parquet", pl.DataFrame(columns), header)
    return sorted(folder.iterdir())


def test_what_is_no_embeddings_is_an_input_error(tmp_path):
    paths = bad_files(tmp_path)
    assert len(paths) == 11
    for path in [*paths, tmp_path / "absent.parquet"]:
        with pytest.raises(errors.InputError):
            features.open_features(path)


def test_cut_data_is_an_input_error(tmp_path):
    path = tmp_path / "f.parquet"
    vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    series = pl.Series(vectors, dtype=pl.Array(pl.Float32, 8))
    header = artifacts.Header(kind="embeddings")
    frame = pl.DataFrame({"id": map(str, range(500)), "embedding": series}).with_columns(
        error=pl.lit(None, pl.String)
    )
    artifacts.write_table(path, frame, header)
    data = bytearray(path.read_bytes())
    data[6000:9000] = b"\0" * 3000
    path.write_bytes(data)
    source = features.open_features(path)
    with pytest.raises(errors.InputError, match="damaged"):
        everything(source)


def test_splits(tmp_path):
    source = features.open_features(own(tmp_path / "e.parquet"))
    with pytest.raises(errors.InputError, match="no column `split`"):
        source.rows("test")
    path = own(tmp_path / "s.parquet", split=["train", "test", None, None])
    with pytest.raises(errors.UsageError, match="no split 'val'") as caught:
        features.open_features(path).rows("val")
    assert caught.value.hint == "its splits: test, train"


def test_grids_over_the_same_tissue_are_other_images(tmp_path):
    seen = []
    for mpp in (1.0, 0.998):
        path = tmp_path / f"{mpp}.parquet"
        frame = pl.DataFrame(
            {
                "id": ["a"],
                "embedding": pl.Series([[1.0, 2.0]], dtype=pl.Array(pl.Float32, 2)),
                "error": pl.Series([None], dtype=pl.String),
            }
        )
        header = artifacts.Header(
            kind="embeddings",
            parents=("tissue:abc", "encoder:def"),
            settings={"grid": {"mpp": [mpp], "size_px": 64}},
        )
        artifacts.write_table(path, frame, header)
        seen.append(features.open_features(path).images)
    assert seen == [
        'tissue:abc {"mpp":[1.0],"size_px":64}',
        'tissue:abc {"mpp":[0.998],"size_px":64}',
    ]
