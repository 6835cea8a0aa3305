import os
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pathfm_cli import disk, errors


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), disk.atomic(path) as temporary:
        temporary.write_text("new, half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_of_dead_processes_are_swept_and_of_living_ones_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"a.txt.tmp-{dead.pid}").write_text("half")
    (tmp_path / f"a.txt.tmp-{dead.pid}-{os.getpid()}").write_text("half")
    (tmp_path / "a.txt.tmp-x-1").write_text("another's")
    alive = tmp_path / f"a.txt.tmp-{os.getppid()}"
    alive.write_text("at work")
    with disk.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted(["a.txt", "a.txt.tmp-x-1", alive.name])


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each opens its temporary before any renames; the file is that of the last."""
    barrier = threading.Barrier(2, timeout=10)

    def write(text: str) -> None:
        with disk.atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text(text)
            barrier.wait()

    with futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("one", "two")))
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() in ("one", "two")


def test_others_may_read_what_a_library_made_private(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.touch()
    with disk.atomic(tmp_path / "a.safetensors") as temporary:
        save_file({"x": np.zeros(3, np.float32)}, temporary)
        assert temporary.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a.safetensors").stat().st_mode == plain.stat().st_mode


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.Unwritable, match="file is no folder"):
        disk.check_place(tmp_path / "file" / "deeper" / "a.txt")
    with pytest.raises(errors.Unwritable, match="cannot be written"):
        with disk.atomic(tmp_path / "file" / "a.txt"):
            pass
    disk.check_place(tmp_path / "new" / "deeper" / "a.txt")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.Unwritable, match="cannot be written"):
        disk.make_folder(tmp_path / "file" / "deeper")
    disk.make_folder(tmp_path / "new" / "deeper")
    disk.make_folder(tmp_path / "new" / "deeper")
    assert (tmp_path / "new" / "deeper").is_dir()
