"""Machines that wait for each other: stopped by a signal, told when nobody comes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pathfm_cli import errors
from pathfm_cli.pretrain import launch, meeting, place

WAITING = """
import sys
from pathfm_cli import errors
from pathfm_cli.pretrain import launch
nodes = launch.Nodes(count=2, rank=int(sys.argv[1]), endpoint=f"127.0.0.1:{sys.argv[2]}")
try:
    launch.launch(1, [], lambda: sys.stdout.write("waiting\\n"), nodes)
except errors.Interrupted as error:
    sys.stderr.write(f"pathfm: {error}\\nhint: {error.hint}\\n")
    sys.exit(error.exit_code)
"""


LATE = errors.PathfmError("late", "sooner")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_the_other_machine(
    rank: int, number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-u", "-c", WAITING, str(rank), str(free_port())]
    pipe = subprocess.PIPE
    scratch = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=scratch) as process:
        try:
            # While it waits, what it says goes to stderr, as of all that torchrun starts.
            assert process.stderr is not None
            assert process.stderr.readline() == "waiting\n"
            time.sleep(1)
            process.send_signal(number)
            process.wait(20)
        finally:
            process.kill()
        said = process.stderr.read().replace("waiting\n", "")
    assert process.returncode == 75
    assert not list(tmp_path.glob("pathfm-*"))
    assert said == (
        "pathfm: Stopped by a signal before training began.\nhint: run the same command again\n"
    )


@pytest.mark.parametrize(("rank", "words"), [(0, "1/2 clients joined"), (1, "Connection refused")])
def test_machines_that_do_not_come_are_told(
    rank: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(place.PATIENCE, "1")
    endpoint = f"127.0.0.1:{free_port()}"
    nodes = launch.Nodes(count=2, rank=rank, endpoint=endpoint)
    with pytest.raises(errors.PathfmError, match=words) as told:
        launch.launch(1, [], lambda: None, nodes)
    assert str(told.value).startswith(f"The 2 machines did not meet at {endpoint}: ")
    assert "--node-rank" in told.value.hint


def test_what_is_no_torch_is_not_waited_for_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers, as a web server would, so that torch's own time-out never comes."""
    monkeypatch.setenv(place.PATIENCE, "1")
    code = "from pathfm_cli.pretrain import meeting; meeting.MARGIN_S = 0.0\n" + WAITING
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [sys.executable, "-c", code, "1", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"did not meet at 127.0.0.1:{port}: nothing has begun after 2 s." in done.stderr


def test_handlers_are_as_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(errors.Interrupted), meeting.stoppable(tmp_path, 60, LATE):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
    assert signal.set_wakeup_fd(-1) == -1
