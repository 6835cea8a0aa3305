"""Starting processes: how many, what they inherit, how their errors come back."""

import os
import subprocess
import sys

import pytest

from pathfm_cli import errors
from pathfm_cli.pretrain import launch, stop


def test_processes_on_the_cpu_are_as_many_as_wanted():
    assert launch.processes(0, "cpu") == 1
    assert launch.processes(3, "cpu") == 3


def test_workers_inherit_threads_and_the_old_environment_comes_back(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with launch.environment(1, tmp_path / "e.json"):
        assert os.environ["OMP_NUM_THREADS"] == str(os.cpu_count())
        assert os.environ[stop.LAUNCHER] == str(os.getpid())
    assert dict(os.environ) == before
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with launch.environment(1, tmp_path / "e.json"):
        assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_workers_error_comes_back_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "e.json"
    monkeypatch.setenv(launch.ERROR_FILE, str(file))
    launch.leave_error(errors.UsageError("Too wide.", "narrower"))
    launch.leave_error(errors.InputError("A later one."))
    error = launch.left(file)
    assert (type(error), str(error), error.hint) == (errors.UsageError, "Too wide.", "narrower")
    assert error.exit_code == 2


def test_an_error_without_a_launcher_goes_nowhere(monkeypatch):
    monkeypatch.delenv(launch.ERROR_FILE, raising=False)
    launch.leave_error(errors.UsageError("Too wide."))


def worker(tmp_path, monkeypatch, code):
    """Run a module of our own in the place of the worker."""
    (tmp_path / "stand_in.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "WORKER", "stand_in")


def test_workers_have_no_stdin_and_write_to_stderr(tmp_path, monkeypatch, capfd):
    worker(tmp_path, monkeypatch, "import os, sys; os.write(1, b'said %a\\n' % sys.stdin.read())")
    ticks = []
    launch.launch(2, [], lambda: ticks.append(1))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "said ''\nsaid ''\n"
    assert ticks
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"


def test_a_worker_that_dies_is_named(tmp_path, monkeypatch, capfd):
    worker(tmp_path, monkeypatch, "import os, sys; sys.exit(9 * int(os.environ['RANK']))")
    with pytest.raises(errors.PathfmError, match="process 1 ended with exit code 9") as caught:
        launch.launch(2, [], lambda: None)
    assert "run the same command again" in caught.value.hint
    assert capfd.readouterr().err == ""


def test_a_known_error_crosses_the_processes(tmp_path, monkeypatch):
    code = """
import sys
from pathfm_cli import errors
from pathfm_cli.pretrain import launch
launch.leave_error(errors.Interrupted("Stopped.", "again"))
sys.exit(75)
"""
    worker(tmp_path, monkeypatch, code)
    with pytest.raises(errors.Interrupted, match="Stopped"):
        launch.launch(1, [], lambda: None)


def test_this_process_is_no_rank_unless_torchrun_says_so(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not launch.is_rank()
    monkeypatch.setenv("RANK", "0")
    assert launch.is_rank()


def test_launching_needs_torch_only_when_it_happens():
    import subprocess

    code = "import sys, pathfm_cli.pretrain.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_rank_leaves_with_its_words_said_and_python_not_taken_apart():
    script = (
        "import atexit; from pathfm_cli.pretrain import launch\n"
        "atexit.register(print, 'taken apart'); print('said', end=''); launch.leave(75)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "said", "")
