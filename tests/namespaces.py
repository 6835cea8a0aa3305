"""Two nodes that are really apart: two network namespaces, and a cable between them.

Needs root and Linux's `ip`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")
NODES = (f"pfm-a-{os.getpid()}", f"pfm-b-{os.getpid()}")
CABLES = (f"pfa{os.getpid()}", f"pfb{os.getpid()}")
"""Of this test process; others may have their own, with the same addresses."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Two namespaces, each with one end of a cable; each finds this host's name at node 0.

    Where there can be none, the test is skipped.
    """
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and `ip`")
    try:
        for node in NODES:
            ip("netns", "add", node)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    hosts = [Path("/etc/netns") / node for node in NODES]
    try:
        ip("link", "add", CABLES[0], "type", "veth", "peer", "name", CABLES[1])
        for node, end, address, folder in zip(NODES, CABLES, ADDRESSES, hosts, strict=True):
            ip("link", "set", end, "netns", node)
            ip("-n", node, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", node, "link", "set", end, "up")
            ip("-n", node, "link", "set", "lo", "up")
            folder.mkdir(parents=True)
            names = f"127.0.0.1 localhost\n{ADDRESSES[0]} {socket.gethostname()}\n"
            (folder / "hosts").write_text(names)
        yield
    finally:
        for node, folder in zip(NODES, hosts, strict=True):
            subprocess.run(["ip", "netns", "del", node], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


def cable(state: str, node: int = 1) -> None:
    """Plug the cable of a node in (`up`), or pull it (`down`): packets vanish, nobody is told.

    A node whose cable is pulled cannot reach its own address either; what stays connected must
    be on the other node.
    """
    ip("-n", NODES[node], "link", "set", CABLES[node], state)


def on(
    node: int, *command: str | Path, heard: bool = True, **environment: str
) -> subprocess.Popen[str]:
    """Start Python with these arguments on a node; who talks for long must not be `heard`."""
    output = subprocess.PIPE if heard else subprocess.DEVNULL
    return subprocess.Popen(
        ["ip", "netns", "exec", NODES[node], sys.executable, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": CABLES[node],
            **environment,
        },
    )


def ended(processes: Sequence[subprocess.Popen[str]], timeout: float) -> list[tuple[int, str]]:
    """Exit code and stderr of each, within so many seconds all together."""
    deadline = time.monotonic() + timeout
    found = []
    for process in processes:
        try:
            _, said = process.communicate(timeout=max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = f"still running after {timeout} s\n{process.communicate()[1]}"
        found.append((process.returncode, said))
    return found
