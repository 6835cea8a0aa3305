"""A result folder is there whole or not at all, and an older one is never lost."""

import os

import pytest

from pathfm_cli.tasks import staging


def fill(out, text):
    with staging.staged(out, "id") as stage:
        (stage / "a").write_text(text)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_result_takes_the_place_of_the_old_one(tmp_path):
    fill(tmp_path / "out", "one")
    fill(tmp_path / "out", "two")
    assert (tmp_path / "out" / "a").read_text() == "two" and left(tmp_path) == ["out"]


def test_a_failure_on_the_way_leaves_the_old_result(tmp_path):
    fill(tmp_path / "out", "one")
    with pytest.raises(ValueError, match="half"):
        with staging.staged(tmp_path / "out", "id"):
            raise ValueError("half done")
    assert (tmp_path / "out" / "a").read_text() == "one" and left(tmp_path) == ["out"]


def test_a_rename_that_fails_gives_the_old_result_back(tmp_path, monkeypatch):
    fill(tmp_path / "out", "one")
    rename = os.replace

    def second_fails(source, target):
        if ".parts-id" in str(source) and not str(source).endswith(".old"):
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="no"):
        fill(tmp_path / "out", "two")
    assert (tmp_path / "out" / "a").read_text() == "one" and left(tmp_path) == ["out"]


def test_after_a_kill_between_the_renames_the_old_result_comes_back(tmp_path):
    old = tmp_path / "out.parts-id.old"
    old.mkdir()
    (old / "a").write_text("one")
    with pytest.raises(ValueError, match="again"):
        with staging.staged(tmp_path / "out", "id"):
            raise ValueError("again")
    assert (tmp_path / "out" / "a").read_text() == "one" and left(tmp_path) == ["out"]
