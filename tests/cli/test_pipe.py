"""The pipe protocol with real processes; `show` is the smallest verb that reads an artifact."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from pathfm_cli import artifacts, errors
from pathfm_cli.cli import pipe

PATHFM = f"{shlex.quote(sys.executable)} -m pathfm_cli"
FRAME = pl.DataFrame({"metric": ["m"], "split": ["test"], "run": [0], "value": [0.5]})


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.parquet"
    artifacts.write_table(path, FRAME, artifacts.Header(kind="scores", settings={"a": 1}))
    return path


def shell(command: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, **kwargs
    )  # type: ignore[call-overload]


def test_an_argument_leaves_stdin_alone(scores: Path) -> None:
    done = shell(f"printf 'rest' | {{ {PATHFM} show {scores} >/dev/null; cat; }}")
    assert (done.returncode, done.stdout) == (0, "rest")


@pytest.mark.parametrize("dash", ["", " -"])
def test_a_record_a_bare_path_and_foreign_records(scores: Path, dash: str) -> None:
    record = json.dumps({"schema": "pathfm.artifact/1", "kind": "scores", "path": str(scores)})
    for line in (record, str(scores), '{"other": "tool"}\n' + record):
        done = shell(f"{PATHFM} show{dash} --json", input=line + "\n")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["settings"] == {"a": 1}


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("true | {pathfm} show", 3, "stdin ended without"),
        ("{pathfm} show < /dev/null", 2, "name it, or pipe it in"),
        ("{pathfm} show <&-", 2, "name it, or pipe it in"),
        ("echo nowhere.parquet | {pathfm} show", 3, "nowhere.parquet does not exist"),
        ("echo '{{broken' | {pathfm} show", 3, "damaged record"),
        ('echo \'{{"schema":"pathfm.artifact/2"}}\' | {pathfm} show', 3, "newer than"),
        ("{pathfm} show < {scores}", 3, "not text"),
        ("{pathfm} show {scores} {other}", 2, "Two inputs where one is taken"),
    ],
)
def test_what_cannot_be_read(scores: Path, command: str, code: int, message: str) -> None:
    other = scores.with_name("other.parquet")
    artifacts.write_table(other, FRAME, artifacts.Header(kind="scores", settings={"a": 2}))
    done = shell(command.format(pathfm=PATHFM, scores=scores, other=other))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("pathfm: ") and message in done.stderr


@pytest.mark.skipif(shutil.which("script") is None, reason="needs script(1) for a terminal")
def test_a_terminal_gets_an_example_instead_of_a_wait() -> None:
    done = shell(f"script -qec '{PATHFM} show' /dev/null")
    assert done.returncode == 2
    assert "hint: pathfm index slides/" in done.stdout


def test_a_closed_stdout_is_141(scores: Path) -> None:
    done = shell(f"{PATHFM} show {scores} >&-")
    assert done.returncode == 141 and "what was written stays" in done.stderr


def test_a_reader_that_left_is_141(scores: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "pathfm_cli", "show", str(scores)],
        stdin=subprocess.DEVNULL,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write_end)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_silence_is_explained_after_two_seconds(scores: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pathfm_cli", "show"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    start = time.monotonic()
    first = process.stderr.readline()
    assert time.monotonic() - start >= pipe.PATIENCE_S
    assert first.startswith("pathfm show: waiting for ") and "on stdin" in first
    out, _ = process.communicate(f"{scores}\n", timeout=60)
    assert process.returncode == 0 and "scores" in out


SLOTS = {"input": pipe.Slot(("tissue", "patches")), "model": pipe.Slot(("checkpoint",))}


def _piped(monkeypatch: pytest.MonkeyPatch, *handles: pipe.Handle) -> None:
    monkeypatch.setattr(pipe, "read_stdin", lambda verb, wanted: list(handles))


def test_two_inputs_bind_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, run = pipe.Handle("p", "patches"), pipe.Handle("r", "checkpoint")
    _piped(monkeypatch, run, pipe.Handle("x", "scores"), patches)
    assert pipe.bind("embed", [], SLOTS) == {"input": Path("p"), "model": Path("r")}


def test_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    _piped(monkeypatch, pipe.Handle("p", "patches"), pipe.Handle("r", "checkpoint"))
    bound = pipe.bind("embed", [], SLOTS, {"model": "mine"})
    assert bound == {"input": Path("p"), "model": Path("mine")}


def test_two_of_a_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _piped(monkeypatch, pipe.Handle("p", "patches"), pipe.Handle("t", "tissue"))
    with pytest.raises(errors.UsageError, match="Two inputs where one is taken: p and t"):
        pipe.bind("embed", [], SLOTS, {"model": "mine"})


def test_records_of_other_kinds_alone_are_an_empty_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    _piped(monkeypatch, pipe.Handle("x", "scores"))
    with pytest.raises(errors.InputError, match="without a tissue or patches artifact"):
        pipe.bind("embed", [], SLOTS, {"model": "mine"})


def test_an_argument_of_the_wrong_kind_is_named(scores: Path) -> None:
    with pytest.raises(errors.InputError, match="is of kind scores; tissue or patches or check"):
        pipe.bind("embed", [str(scores)], SLOTS)


def test_nothing_needed_leaves_stdin_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(verb: str, wanted: str) -> list[pipe.Handle]:
        raise AssertionError("stdin was read")

    monkeypatch.setattr(pipe, "read_stdin", untouched)
    assert pipe.bind("probe", [], {"m": pipe.Slot(("checkpoint",))}, {"m": "r"}) == {"m": Path("r")}
