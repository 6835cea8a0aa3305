"""Who a run folder belongs to, and what is never overwritten by mistake."""

import contextlib
import subprocess
import sys

import pytest

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.pretrain import folder, recipe


def header(**settings):
    return artifacts.Header(kind="checkpoint", parents=("tissue:1",), settings=settings)


def begun(run, wanted):
    with folder.lock(run):
        folder.prepare(run, wanted, recipe.load("tiny"), overwrite=False)
    return run


def test_new_empty_and_own_folders_are_free(tmp_path):
    run = tmp_path / "run"
    assert folder.inspect(run, header(a=1), overwrite=False) is None
    run.mkdir()
    assert folder.inspect(run, header(a=1), overwrite=False) is None
    begun(run, header(a=1))
    assert folder.inspect(run, header(a=1), overwrite=False) is None


def test_another_run_is_a_clash_once_it_has_a_checkpoint(tmp_path):
    run = begun(tmp_path / "run", header(a=1))
    assert folder.inspect(run, header(a=2), overwrite=False) is None
    (run / folder.CHECKPOINTS / "step-000001").mkdir(parents=True)
    with pytest.raises(errors.OutputClash, match=r"a=1 \(now 2\)"):
        folder.inspect(run, header(a=2), overwrite=False)
    assert folder.inspect(run, header(a=2), overwrite=True) is None
    assert folder.inspect(run, header(a=1), overwrite=False) is None


def test_settings_clash_before_the_inputs_are_known(tmp_path):
    run = begun(tmp_path / "run", header(a=1))
    (run / folder.CHECKPOINTS).mkdir()
    folder.refuse(run, {"a": 1}, overwrite=False)
    with pytest.raises(errors.OutputClash, match=r"a=1 \(now 2\)"):
        folder.refuse(run, {"a": 2}, overwrite=False)


def test_a_file_is_never_replaced(tmp_path):
    file = tmp_path / "run"
    file.write_text("precious")
    with pytest.raises(errors.OutputClash, match="is a file"):
        folder.inspect(file, header(), overwrite=True)


def test_overwrite_replaces_no_folder_that_is_no_run(tmp_path):
    (tmp_path / folder.CHECKPOINTS).mkdir()
    (tmp_path / folder.CONFIG).write_text("mine = 1")
    for overwrite in (False, True):
        with pytest.raises(errors.OutputClash, match="no run of pathfm"):
            folder.inspect(tmp_path, header(), overwrite=overwrite)


def test_a_place_where_no_folder_can_be_is_unwritable(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(errors.Unwritable, match="link"), folder.lock(tmp_path / "link"):
        pass


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    run = begun(tmp_path / "run", header(a=1))
    (run / "notes.txt").write_text("mine")
    (run / folder.CHECKPOINTS / "step-000001").mkdir(parents=True)
    (run / folder.METRICS).write_text("{}\n")
    with folder.lock(run):
        folder.prepare(run, header(a=2), recipe.load("tiny"), overwrite=True)
    left = sorted(path.name for path in run.iterdir())
    assert left == [".lock", "config.toml", "notes.txt", "run.json"]


def test_continuing_keeps_everything(tmp_path):
    run = begun(tmp_path / "run", header(a=1))
    (run / folder.METRICS).write_text("{}\n")
    begun(run, header(a=1))
    assert (run / folder.METRICS).exists()


def test_checkpoints_are_ordered_by_number_and_whole(tmp_path):
    for name in ("step-1000000", "step-000002", "step-999999", ".step-000003.tmp-1", "step-x"):
        (tmp_path / name).mkdir()
    found = [folder.steps(path) for path in folder.checkpoints(tmp_path)]
    assert found == [2, 999_999, 1_000_000]


def test_a_second_process_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_PATIENCE_S", 0.0)
    script = (
        "import sys, pathlib; from pathfm_cli.pretrain import folder\n"
        "with folder.lock(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(errors.OutputClash, match="Another process trains"), folder.lock(tmp_path):
        pass
    other.kill()
    other.communicate()
    with folder.lock(tmp_path):
        pass


def test_another_machine_may_look_at_any_moment_of_the_preparation(tmp_path, monkeypatch):
    run, looks = tmp_path / "run", []
    atomic = disk.atomic

    def look():
        looks.append(folder.inspect(run, header(a=1), overwrite=False))

    @contextlib.contextmanager
    def watched(path):
        look()
        with atomic(path) as temporary:
            look()
            yield temporary
            look()
        look()

    monkeypatch.setattr(disk, "atomic", watched)
    begun(run, header(a=1))
    assert looks == 8 * [None]
