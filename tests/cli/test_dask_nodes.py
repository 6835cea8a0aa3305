"""Dask across two nodes that are really apart, and a cable that is pulled in the middle of `embed`.

Needs root and Linux's `ip`; elsewhere these tests are skipped.
"""

import contextlib
import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import ADDRESSES, cable, connected, ended, on
from processes import pathfm as forked

from pathfm_cli import cluster

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow(50)

TCP_S = 11
"""How long Dask waits for an answer of a connection here (`distributed.comm.timeouts.tcp`); 30 s
unless it is set, at least 11."""
STATED_S = TCP_S + 15
"""Within so long after the cut a command that has lost its scheduler has ended."""
PATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{TCP_S}s"}
DEMO = Path(cluster.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"
EMBED = ("--model", "random/test_vit", "--image-size", "64", "-o")
DASK = "import distributed.cli.dask_{0} as program; program.main()"
AT_WORK = """
import sys, time, distributed
address, host = sys.argv[1:]
with distributed.Client(address, timeout=60) as client:
    client.wait_for_workers(2, timeout=60)
    print("ready", flush=True)
    for _ in range(6000):
        for worker, keys in client.processing().items():
            count = sum(key.startswith("_apply") for key in keys)
            if host in worker and count:
                print(worker, count, flush=True)
                sys.exit()
        time.sleep(0.02)
"""
REMOVED = """
import sys, distributed
with distributed.Client(sys.argv[1]) as client:
    for _, event in client.get_events("all"):
        if event.get("action") == "remove-worker" and event["processing-tasks"]:
            print(event["worker"])
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    with connected():
        yield


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of one scan: five chunks of `embed`, two seconds each."""
    folder = tmp_path_factory.mktemp("patches")
    (folder / "slides").mkdir()
    for name in "abc":
        (folder / "slides" / f"{name}.svs").symlink_to(DEMO)
    grid = ["--grid", "--mpp", "0.5", "--size", "64", "--stride", "28"]
    for words in (
        ["index", folder / "slides", "-o", folder / "s.parquet"],
        ["mask", folder / "s.parquet", "--method", "otsu", "-o", folder / "t.parquet"],
        ["sample", folder / "t.parquet", *grid, "-o", folder / "p.parquet"],
        ["embed", folder / "p.parquet", *EMBED, folder / "plain.parquet"],
    ):
        assert forked(*words).returncode == 0
    return folder / "p.parquet"


@contextlib.contextmanager
def dask(scheduler: int, workers: tuple[int, ...], port: int) -> Iterator[str]:
    """A scheduler and workers on these nodes, as their users start them; its address."""
    address = f"tcp://{ADDRESSES[scheduler]}:{port}"
    quiet = {"heard": False, **PATIENT}
    at = ("--host", ADDRESSES[scheduler], "--port", str(port), "--no-dashboard")
    there = (address, "--nthreads", "1", "--no-dashboard")
    started = [on(scheduler, "-c", DASK.format("scheduler"), *at, **quiet)]
    started += [on(node, "-c", DASK.format("worker"), *there, **quiet) for node in workers]
    try:
        yield address
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def embed(patches: Path, out: Path, address: str) -> subprocess.Popen[str]:
    """`embed` on node 0."""
    verb = ("-m", "pathfm_cli", "embed", patches, *EMBED, out, "--dask", address)
    return on(0, *verb, "--quiet", **PATIENT)


def chunks(out: Path) -> str:
    """Pattern of the chunks that are kept beside an unfinished result."""
    return f"{out}.parts-*/????????.parquet"


def finished(out: Path) -> dict[str, int]:
    """Finished chunks, and when they were written, ns."""
    return {name: os.stat(name).st_mtime_ns for name in glob.glob(chunks(out))}


def wait_for_chunk(out: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not finished(out):
        if running.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"no chunk was finished: {ended([running], 1)}")
        time.sleep(0.05)


def test_the_pieces_of_a_node_that_is_cut_off_are_done_by_the_other(
    nodes: None, patches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = patches.with_name("worker.parquet")
    with dask(0, (0, 1), 8786) as address:
        # Ends as soon as chunks are under way on node 1.
        watch = on(0, "-c", AT_WORK, address, ADDRESSES[1])
        assert watch.stdout is not None
        assert watch.stdout.readline() == "ready\n"
        running = embed(patches, out, address)
        worker, count = watch.stdout.readline().split()
        cable("down")
        began = time.monotonic()
        (code, said), _ = ended([running, watch], 150)
        seconds = time.monotonic() - began
        removed = on(0, "-c", REMOVED, address).communicate(timeout=60)[0].split()
        cable("up")
    assert code == 0, said
    assert removed == [worker]  # while it had pieces to do, says the scheduler
    assert out.read_bytes() == patches.with_name("plain.parquet").read_bytes()
    with capsys.disabled():
        sys.stdout.write(
            f"\nDask on two nodes, cable cut with {count} chunks on the other node: done "
            f"{seconds:.1f} s later (tcp timeout {TCP_S} s), result equal\n"
        )


def test_a_command_that_loses_its_scheduler_says_so_and_goes_on(
    nodes: None, patches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = patches.with_name("scheduler.parquet")
    with dask(1, (1, 1), 8786) as address:
        running = embed(patches, out, address)
        wait_for_chunk(out, running)
        cable("down", 0)
        began = time.monotonic()
        ((code, said),) = ended([running], STATED_S)
        seconds = time.monotonic() - began
        cable("up", 0)
        assert code == 1, said
        assert "The cluster is gone" in said, said
        assert "the same command goes on from what is finished" in said, said
        assert "Traceback" not in said, said
        kept = finished(out)
        again = embed(patches, out, address)
        while again.poll() is None and len(now := finished(out)) <= len(kept):
            time.sleep(0.02)
        assert kept.items() < now.items()  # what was finished is not written again
        ((code, said),) = ended([again], 150)
    assert code == 0, said
    assert out.read_bytes() == patches.with_name("plain.parquet").read_bytes()
    with capsys.disabled():
        sys.stdout.write(
            f"\nDask on the other node, cable cut after {len(kept)} chunks: exit 1 after "
            f"{seconds:.1f} s (tcp timeout {TCP_S} s); resumed, result equal\n"
        )
