import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from pathfm_cli import artifacts, errors

HEADER = artifacts.Header(kind="scores", parents=("embeddings:0a",), settings={"b": 1, "a": [1.5]})
FRAME = pl.DataFrame({"metric": ["m"], "split": ["test"], "run": [0], "value": [0.5]})


def test_id_is_the_documented_hash() -> None:
    text = '["scores","pathfm.artifact/1",["embeddings:0a"],{"a":[1.5],"b":1}]'
    assert HEADER.id == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_table_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s.parquet"
    record = artifacts.write_table(path, FRAME, HEADER, attached={"x": FRAME}, extra={"geo": "{}"})
    assert record == {
        "schema": "pathfm.artifact/1",
        "kind": "scores",
        "id": HEADER.id,
        "path": str(path),
        "rows": 1,
        "failed": 0,
    }
    table = artifacts.read_table(path, "scores")
    assert table.frame.equals(FRAME) and table.attached["x"].equals(FRAME)
    assert table.header.settings == {"a": [1.5], "b": 1} and table.header.rows == 1
    assert pl.read_parquet_metadata(path)["geo"] == "{}"
    assert os.listdir(path.parent) == ["s.parquet"]


def test_lazy_frames_are_streamed_with_the_same_header(tmp_path: Path) -> None:
    record = artifacts.write_table(tmp_path / "s.parquet", FRAME.lazy(), HEADER)
    assert record["rows"] == 1
    assert artifacts.read_table(tmp_path / "s.parquet").frame.equals(FRAME)


@pytest.mark.parametrize("lazy", [False, True])
def test_row_groups_are_as_small_as_asked_for(tmp_path: Path, lazy: bool) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    frame = pl.DataFrame({"metric": ["m"] * 10, "split": [""] * 10, "run": [0] * 10})
    frame = frame.with_columns(value=pl.int_range(10).cast(pl.Float64))
    path = tmp_path / "s.parquet"
    header = artifacts.Header(kind="scores")
    artifacts.write_table(path, frame.lazy() if lazy else frame, header, group_rows=4)
    found = pq.ParquetFile(path).metadata
    assert [found.row_group(n).num_rows for n in range(found.num_row_groups)] == [4, 4, 2]
    assert artifacts.read_table(path, "scores").frame["value"].to_list() == list(range(10))


def test_failed_rows_are_counted(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"id": ["a", "b"], "embedding": [[1.0], None], "error": [None, "torn"]},
        schema_overrides={"embedding": pl.Array(pl.Float32, 1)},
    )
    record = artifacts.write_table(
        tmp_path / "e.parquet", frame, artifacts.Header(kind="embeddings")
    )
    assert (record["rows"], record["failed"]) == (2, 1)


def test_a_promised_column_is_checked_on_write(tmp_path: Path) -> None:
    with pytest.raises(errors.PathfmError, match="scores without column value"):
        artifacts.write_table(tmp_path / "s.parquet", FRAME.drop("value"), HEADER)
    assert os.listdir(tmp_path) == []


def test_finished_same_id_is_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    assert artifacts.finished(path, HEADER) is None
    artifacts.write_table(path, FRAME, HEADER)
    record = artifacts.finished(path, HEADER)
    assert record is not None and record["id"] == HEADER.id
    assert artifacts.finished(path, HEADER, overwrite=True) is None


def test_finished_names_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    artifacts.write_table(path, FRAME, HEADER)
    other = artifacts.Header(kind="scores", parents=HEADER.parents, settings={"a": [1.5], "b": 2})
    with pytest.raises(errors.OutputClash, match=r"made with b=1 \(now 2\)"):
        artifacts.finished(path, other)
    path.write_text("precious")
    with pytest.raises(errors.OutputClash, match="is no pathfm artifact"):
        artifacts.finished(path, HEADER)


def _metadata(path: Path, document: object) -> Path:
    FRAME.write_parquet(path, metadata={"pathfm": json.dumps(document)})
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "no.parquet", "does not exist"),
        (lambda d: (d / "t.parquet").write_bytes(b"PAR1junk") and d / "t.parquet", "cut short"),
        (lambda d: FRAME.write_parquet(d / "p.parquet") or d / "p.parquet", "not written by"),
        (
            lambda d: _metadata(d / "n.parquet", {"schema": "pathfm.artifact/2"}),
            "newer than this pathfm",
        ),
        (lambda d: _metadata(d / "k.parquet", [1]), "damaged"),
        (
            lambda d: _metadata(
                d / "u.parquet", {"schema": "pathfm.artifact/1", "kind": "x", "parents": []}
            ),
            "damaged",
        ),
        (
            lambda d: (
                (d / "h.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
                and d / "h.safetensors"
            ),
            "cut short",
        ),
    ],
)
def test_unusable_inputs_are_input_errors(tmp_path: Path, make: object, message: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(errors.InputError, match=message):
        artifacts.read_table(path, "scores")


def test_wrong_kind_names_the_verb_that_helps(tmp_path: Path) -> None:
    artifacts.write_table(tmp_path / "s.parquet", FRAME, HEADER)
    with pytest.raises(errors.InputError, match="kind scores; tissue is needed") as caught:
        artifacts.read_table(tmp_path / "s.parquet", "tissue")
    assert "pathfm mask" in caught.value.hint


def test_safetensors_headers_are_read_and_a_folder_means_its_teacher(tmp_path: Path) -> None:
    header = artifacts.Header(kind="checkpoint", settings={"arch": "x"})
    save_file(
        {"w": np.zeros(2, np.float32)},
        tmp_path / "teacher.safetensors",
        metadata={"pathfm": header.dumps()},
    )
    assert artifacts.read_header(tmp_path, "checkpoint").id == header.id


def test_parts_survive_and_are_collected_in_order(tmp_path: Path) -> None:
    parts = artifacts.Parts(tmp_path / "s.parquet", HEADER)
    assert parts.done() == set()
    parts.write(1, FRAME.with_columns(run=pl.lit(1, pl.Int64)))
    parts.write(0, FRAME)
    (parts.folder / "00000002.parquet.tmp-1").write_text("half")
    again = artifacts.Parts(tmp_path / "s.parquet", HEADER)
    assert again.done() == {0, 1}
    assert again.scan().collect()["run"].to_list() == [0, 1]
    again.discard()
    assert os.listdir(tmp_path) == []


def test_a_missing_companion_is_named(tmp_path: Path) -> None:
    header = artifacts.Header(kind="scores", files={"tiles": "t.safetensors"})
    artifacts.write_table(tmp_path / "s.parquet", FRAME, header)
    with pytest.raises(errors.InputError, match="which is gone"):
        artifacts.read_table(tmp_path / "s.parquet").file("tiles")
