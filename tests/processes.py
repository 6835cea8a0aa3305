"""`pathfm` as a process of its own, forked from an interpreter that has its imports behind it.

Importing torch takes a process 2 s; a test run starts hundreds. What is forked here reads the same
command line, has its own file descriptors, folder and environment, and ends with its own exit
code. Tests of start-up itself, of signals and of pipes between verbs start fresh interpreters.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

IMPORTS = ("numpy", "polars", "shapely", "torch", "timm", "sklearn.linear_model", "zarr")
DEVNULL = subprocess.DEVNULL


def pathfm(
    *arguments: str | Path,
    cwd: str | Path | None = None,
    stdin: str | int | None = None,
    timeout: float = 240,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `pathfm` with these arguments and, as stdin, a text, a descriptor, or nothing.

    Raises:
        subprocess.TimeoutExpired: it was still running after `timeout` seconds, and was killed.
    """
    command = ["pathfm", *map(str, arguments)]
    request = {
        "arguments": command,
        "cwd": os.fspath(cwd or os.getcwd()),
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "PATHFM_MODEL": "", **(env or {})},
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


def _ask(request: Mapping[str, Any], files: Sequence[BinaryIO], timeout: float) -> int:
    """Send the request and its three files; the exit code, negative for a signal."""
    line = _server()
    socket.send_fds(line, [json.dumps(request).encode() + b"\n"], [f.fileno() for f in files])
    line.settimeout(timeout)
    pid = int(_line(line))
    try:
        return int(_line(line))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        line.settimeout(None)
        _line(line)
        raise subprocess.TimeoutExpired(request["arguments"], timeout) from None


@functools.cache
def _server() -> socket.socket:
    """The line to this test process's own server, which ends when the line closes."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=DEVNULL,
        )
    return ours


def _line(line: socket.socket) -> bytes:
    """Read up to the end of a line."""
    text = b""
    while not text.endswith(b"\n"):
        piece = line.recv(1)
        if not piece:
            raise ConnectionError("the server that forks pathfm is gone")
        text += piece
    return text


def serve(line: socket.socket) -> None:
    """Answer requests until the line closes: the pid of the fork, then its exit code."""
    from pathfm_cli.model import shim

    shim.apply()
    for name in IMPORTS:
        __import__(name)
    gc.freeze()
    while True:
        text, descriptors, _, _ = socket.recv_fds(line, 1 << 16, 3)
        while text and not text.endswith(b"\n"):
            text += line.recv(1 << 16)
        if not text:
            return
        pid = os.fork()
        if not pid:
            line.close()
            be_pathfm(json.loads(text), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        line.sendall(b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def be_pathfm(request: Mapping[str, Any], descriptors: list[int]) -> None:
    """Be the process that was asked for; does not return."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["arguments"]
    sys.path[0] = ""
    code: Any = 0
    try:
        runpy.run_module("pathfm_cli", run_name="__main__", alter_sys=True)
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


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
