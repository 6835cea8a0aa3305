"""`python`, for a command line in a test: forked from the warm interpreter of processes.py.

The program ends as its fork does, hands signals on to it, and takes it along when it is killed.
What is neither pathfm, torchrun nor a script runs in a plain interpreter.
"""

import json
import os
import signal
import socket
import sys

ADDRESS = "TEST_FORK_SERVER"
"""Environment variable: path of the server's socket."""
MODULES = ("pathfm_cli", "pathfm_cli.pretrain.worker", "torch.distributed.run")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def read_line(line: socket.socket) -> bytes:
    """Read up to the end of a line."""
    text = b""
    while not text.endswith(b"\n"):
        piece = line.recv(1)
        if not piece:
            raise ConnectionError("the server that forks pathfm is gone")
        text += piece
    return text


def main(words: list[str]) -> int:
    """Run `python WORDS`; the exit code, negative for a signal."""
    known = words[0].endswith(".py") or (words[0] == "-m" and words[1] in MODULES)
    if not known:
        os.execv(sys.executable, [sys.executable, *words])
    request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.environ[ADDRESS])
        socket.send_fds(line, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        pid = int(read_line(line))
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: os.kill(pid, number))
        return int(read_line(line))


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    if ended < 0:
        signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    sys.exit(ended)
