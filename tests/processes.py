"""`pathfm` as a process of its own, forked from an interpreter that has its imports behind it.

Importing torch takes a process 2 s; a test run starts hundreds. What is forked here reads the same
command line, has its own file descriptors, folder, session and environment, and ends with its own
exit code; `commands` gives a shell `pathfm` and `python` that are forked too, and so are the
processes these start themselves. Tests of start-up itself, of signals and of pipes between verbs
start fresh interpreters.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import forked_python

IMPORTS = ("multiprocessing.spawn", "sqlite3", "typer.main", "pydantic.type_adapter")
IMPORTS += ("numpy", "polars", "shapely", "simplejpeg", "imagecodecs", "zarr")
IMPORTS += ("torch", "timm", "torch.distributed.launcher.api", "sklearn.linear_model")
LAUNCHER = "PATHFM_LAUNCHER"


def pathfm(
    *arguments: str | Path,
    cwd: str | Path | None = None,
    stdin: str | int | None = None,
    timeout: float = 240,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `pathfm` with these arguments and, as stdin, a text, a descriptor, or nothing.

    Raises:
        subprocess.TimeoutExpired: it was still running after `timeout` seconds, and was killed
            with all it had started.
    """
    command = ["pathfm", *map(str, arguments)]
    request = {
        "words": ["-m", "pathfm_cli", *command[1:]],
        "cwd": os.fspath(cwd or os.getcwd()),
        "env": {**os.environ, "PATHFM_MODEL": "", **(env or {})},
    }
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        if isinstance(stdin, str):
            given.write(stdin.encode())
            given.seek(0)
        else:
            source = os.devnull if stdin is None else os.dup(stdin)
            given = stack.enter_context(open(source, "rb", buffering=0))
        code = _ask(request, (given, out, err), timeout)
        out.seek(0)
        err.seek(0)
        texts = out.read().decode(), err.read().decode()
    return subprocess.CompletedProcess(command, code, *texts)


def commands() -> dict[str, str]:
    """An environment in which a shell finds forked `pathfm` and `python`."""
    return {**os.environ, **_server(), "OMP_NUM_THREADS": "1"}


def _ask(request: Mapping[str, Any], files: Sequence[BinaryIO], timeout: float) -> int:
    """Send the request and its three files; the exit code, negative for a signal."""
    line = _line()
    socket.send_fds(line, [json.dumps(request).encode() + b"\n"], [f.fileno() for f in files])
    pid = int(forked_python.read_line(line))
    line.settimeout(timeout)
    try:
        return int(forked_python.read_line(line))
    except TimeoutError:
        os.killpg(pid, signal.SIGKILL)
        line.settimeout(None)
        forked_python.read_line(line)
        raise subprocess.TimeoutExpired(request["words"], timeout) from None
    finally:
        line.settimeout(None)


@functools.cache
def _line() -> socket.socket:
    """The line of this test process to its server."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(_server()[forked_python.ADDRESS])
    return line


@functools.cache
def _server() -> dict[str, str]:
    """Start this test process's own server, which ends with it; what its clients must know."""
    folder = Path(tempfile.mkdtemp(prefix="fork-"))
    python = shlex.join([sys.executable, "-S", "-E", forked_python.__file__])
    for name, words in (("python", ""), ("pathfm", "-m pathfm_cli ")):
        (folder / name).write_text(f'#!/bin/sh\nexec {python} {words}"$@"\n')
        (folder / name).chmod(0o755)
    programs = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    known = {forked_python.ADDRESS: str(folder / "socket"), "PATH": programs}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(known[forked_python.ADDRESS])
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), str(folder)],
            pass_fds=[listener.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
        )
    atexit.register(lambda: process.stdin.close())
    return known


def serve(listener: socket.socket, folder: Path) -> None:
    """Fork a process for every line that comes in, until stdin closes."""
    from pathfm_cli.model import shim

    shim.apply()
    for name in IMPORTS:
        __import__(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    ended = sys.stdin.fileno()
    while ended not in select.select([listener, ended], [], [])[0]:
        line, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(line, folder)
        line.close()
    shutil.rmtree(folder)


def answer(line: socket.socket, folder: Path) -> None:
    """Answer requests until the line closes: the pid of a fork, then its exit code.

    Does not return. A fork whose client is gone is killed.
    """
    while True:
        text, descriptors, _, _ = socket.recv_fds(line, 1 << 16, 3)
        while text and not text.endswith(b"\n"):
            text += line.recv(1 << 16)
        if not text:
            os._exit(0)
        pid = os.fork()
        if not pid:
            line.close()
            os.setsid()
            be_python(json.loads(text), descriptors, folder)
        for descriptor in descriptors:
            os.close(descriptor)
        line.sendall(b"%d\n" % pid)
        ended = os.pidfd_open(pid)
        if ended not in select.select([ended, line], [], [])[0]:
            os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def be_python(request: Mapping[str, Any], descriptors: list[int], folder: Path) -> None:
    """Be the process that was asked for; does not return."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ[forked_python.ADDRESS] = str(folder / "socket")
    if LAUNCHER in os.environ:
        # A training process watches its parent, which here is not who had it started.
        os.environ[LAUNCHER] = str(os.getppid())
    os.chdir(request["cwd"])
    sys.executable = str(folder / "python")
    code: Any = 0
    try:
        _run(request["words"])
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # Taking torch apart at the end costs more than a short command.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _run(words: list[str]) -> None:
    """Run `python WORDS`."""
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], ""
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
