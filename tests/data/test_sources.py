import os
from pathlib import Path

import polars as pl
import pytest

from pathfm_cli import errors
from pathfm_cli.data import sources


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/B1.svs", "B1"),
        ("B1.ome.tif", "B1"),
        ("B1.OME.TIFF", "B1"),
        ("B1.x.tiff", "B1.x"),
        ("TCGA-AA-0001-01Z-00-DX1.6b2e.svs", "TCGA-AA-0001-01Z-00-DX1.6b2e"),
        ("scan.ndpi", "scan"),
        ("B1", "B1"),
        (".svs", ".svs"),
    ],
)
def test_slide_ids(name: str, expected: str) -> None:
    assert sources.slide_id(name) == expected


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.svs", "sub/a.ome.tif", "sub/deep/c.TIFF", "sub/d.ndpi", "notes.txt", ".e.svs"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(found: list[sources.Source]) -> list[str]:
    return [source.slide for source in found]


def test_a_folder_and_what_is_below_it(tree: Path) -> None:
    found = sources.expand([str(tree)])
    assert names(found) == ["a", "b", "c", "d"]
    assert found[0].path == str(tree / "sub" / "a.ome.tif")


def test_linked_folders_are_followed_and_loops_end(tree: Path, tmp_path: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "start").mkdir()
    (tree / "start" / "linked").symlink_to(tree / "sub" / "deep")
    assert names(sources.expand([str(tree / "start")])) == ["c"]
    assert names(sources.expand([str(tree / "sub")])) == ["a", "b", "c", "d"]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.svs")).touch()
    with pytest.raises(errors.UsageError, match="is no UTF-8 name"):
        sources.expand([str(tmp_path)])


def test_globs_files_and_repeats(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(sources.expand(["*.svs", "b.svs", str(tree / "b.svs"), "./b.svs"])) == ["b"]
    assert names(sources.expand(["**/*.T*"])) == ["c"]
    assert names(sources.expand(["notes.txt"])) == ["notes.txt"]
    assert sources.expand(["b.svs"])[0].path == str(tree / "b.svs")


def test_a_name_with_brackets_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a[1].svs").touch()
    assert names(sources.expand([str(tmp_path / "a[1].svs")])) == ["a[1]"]


@pytest.mark.parametrize("argument", ["absent.svs", "*.nothing"])
def test_what_does_not_exist(tree: Path, argument: str) -> None:
    with pytest.raises(errors.InputError, match="does not exist"):
        sources.expand([str(tree / argument)])


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="holds no slide") as caught:
        sources.expand([str(tmp_path)])
    assert ".svs" in caught.value.hint


def test_remote_slides_are_not_looked_up() -> None:
    found = sources.expand(["s3://b/x/a.svs", "https://host/b%20c.tif", "az://b/d.ndpi"])
    assert [(source.slide, source.path) for source in found] == [
        ("a", "s3://b/x/a.svs"),
        ("b c", "https://host/b%20c.tif"),
        ("d", "az://b/d.ndpi"),
    ]


def test_two_slides_with_one_id(tree: Path) -> None:
    (tree / "sub" / "b.tif").touch()
    with pytest.raises(errors.UsageError) as caught:
        sources.expand([str(tree)])
    assert str(tree / "b.svs") in str(caught.value)
    assert str(tree / "sub" / "b.tif") in str(caught.value)
    assert "columns path and slide" in caught.value.hint


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_of_slides(tree: Path, suffix: str) -> None:
    frame = pl.DataFrame({"path": ["b.svs", str(tree / "sub/a.ome.tif")], "age": [70, 61]})
    path = tree / f"list{suffix}"
    if suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="," if suffix == ".csv" else "\t")
    found = sources.expand([str(path)])
    assert [(s.slide, s.path, dict(s.columns)) for s in found] == [
        ("a", str(tree / "sub" / "a.ome.tif"), {"age": 61}),
        ("b", str(tree / "b.svs"), {"age": 70}),
    ]


def test_a_table_may_name_the_slides(tree: Path) -> None:
    (tree / "list.csv").write_text("uri,slide\nb.svs,one\nsub/a.ome.tif,\n")
    assert names(sources.expand([str(tree / "list.csv")])) == ["a", "one"]


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("slide,age\na,1\n", errors.UsageError, "no column `path` or `uri`"),
        ("path,mpp\nb.svs,1\n", errors.UsageError, "has a column mpp"),
        ("path,levels\nb.svs,1\n", errors.UsageError, "has a column levels"),
        ("path,age\n,3\n", errors.UsageError, "a row without a path"),
        ("", errors.InputError, "cannot be read as a table"),
    ],
)
def test_tables_that_are_wrong(tree: Path, text: str, error: type, sentence: str) -> None:
    (tree / "list.csv").write_text(text)
    with pytest.raises(error, match=sentence):
        sources.expand([str(tree / "list.csv")])
