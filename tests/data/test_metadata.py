from pathlib import Path

import pytest

from pathfm_cli import errors
from pathfm_cli.data import metadata, sources


def join(path: Path, text: str, slides: list[str]):
    path.write_text(text)
    return metadata.join(path, slides, sources.slide_id)


@pytest.mark.parametrize("key", ["slide", "filename", "path"])
@pytest.mark.parametrize("name", ["a", "a.svs", "x/y/a.ome.tif"])
def test_any_way_of_naming_a_slide(tmp_path: Path, key: str, name: str) -> None:
    frame, notes = join(tmp_path / "m.csv", f"age,{key}\n70,{name}\n61,b\n", ["a", "b"])
    assert frame.select("slide", "age").rows() == [("a", 70), ("b", 61)]
    assert notes == ()


def test_what_does_not_match_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    frame, notes = join(path, "slide\tage\na\t1\nq\t2\nr\t3\ns\t4\nt\t5\n", ["a", "b"])
    assert frame.rows() == [(1, "a")]
    assert notes == (
        f"1 of 2 slides have no row in {path}: b",
        f"4 of 5 rows of {path} match no slide: q, r, s, ...",
    )


def test_stain_may_be_given(tmp_path: Path) -> None:
    frame, _ = join(tmp_path / "m.csv", "slide,stain\na,HE\n", ["a"])
    assert frame["stain"].to_list() == ["HE"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,age\na,1\n", "no column `slide`, `filename` or `path`"),
        ("slide,error\na,1\n", "has a column error, which the index writes itself"),
        ("slide,geometry\na,1\n", "has a column geometry"),
        ("slide,age\na,1\na.svs,2\n", "two rows for the slide a"),
        ("slide,slide,age\na,b,1\n", "has two columns slide"),
        ("slide,age\n,1\n", "a row without a slide"),
        ("slide,age\nq,1\n", "names none of the slides: q"),
        ("slide,age\n", "names none of the slides: it is empty"),
    ],
)
def test_tables_that_cannot_be_joined(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(errors.UsageError, match=sentence):
        join(tmp_path / "m.csv", text, ["a"])


@pytest.mark.parametrize(
    ("name", "text", "error", "sentence"),
    [
        ("m.xlsx", "x", errors.UsageError, "is no table"),
        ("m.csv", None, errors.InputError, "does not exist"),
        ("m.parquet", "no parquet", errors.InputError, "cannot be read as a table"),
        ("m.csv", "a,b\n1,2,3\n", errors.InputError, "cannot be read as a table"),
    ],
)
def test_unreadable_tables(tmp_path: Path, name: str, text, error: type, sentence: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=sentence):
        metadata.read(tmp_path / name)
