"""Processes and threads that read ahead: how far, signals, deaths, and what they leave."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from streams import CONFIG, read, same
from tissues import MakeTissue

from pathfm_cli.data import stream

ENDLESS = """
import sys
from pathfm_cli.data import draw, stream
def main():
    config = draw.SampleConfig(mpp=(0.5, 1.0), size_px=64)
    options = dict(batch_size=4, first_step=0, steps=10**6, workers=2)
    batches = stream.batches(sys.argv[1], config, 9, **options)
    for batch in batches:
        print(int(batch.indices[0]), flush=True)
        sys.stdin.readline()
if __name__ == "__main__":
    main()
"""


def readers(process: int) -> set[int]:
    """Grandchildren: workers are children of the fork server, which is a child of the process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
    return {pid for pid, parent in parents.items() if parents.get(parent) == process}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(processes: set[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(alive, processes))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_ignore_signals_and_end_with_a_killed_parent(
    demo_tissue: Path, tmp_path: Path
) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with subprocess.Popen(
        [sys.executable, str(script), str(demo_tissue)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "0\n"
            process.stdin.write("\n")
            process.stdin.flush()
            # Batches come in turn: with the second one both readers have begun.
            assert process.stdout.readline() == "4\n"
            workers = readers(process.pid)
            assert len(workers) == 2
            for worker in workers:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                    os.kill(worker, number)
            for start in (8, 12, 16, 20, 24):
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"{start}\n"
            assert all(map(alive, workers))
        finally:
            process.kill()
    assert gone(workers, 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_dropped_stream_leaves_no_worker(demo_tissue: Path) -> None:
    before = readers(os.getpid())
    batches = stream.batches(
        demo_tissue, CONFIG, 9, batch_size=4, first_step=0, steps=10**6, workers=2
    )
    next(batches)
    workers = readers(os.getpid()) - before
    assert len(workers) == 2
    del batches
    assert gone(workers, 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_killed_worker_is_replaced_and_no_batch_is_lost(
    demo_tissue: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = readers(os.getpid())
    batches = stream.batches(
        demo_tissue, CONFIG, 9, batch_size=4, first_step=0, steps=20, workers=1
    )
    found = [next(batches)]
    (worker,) = readers(os.getpid()) - before
    os.kill(worker, signal.SIGKILL)
    found += batches
    assert same(found, read(demo_tissue, steps=20))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("a process that reads patches died (") and "on from patch " in told


def test_a_dropped_background_stream_stops_reading(demo_tissue: Path) -> None:
    batches = stream.batches(demo_tissue, CONFIG, 9, batch_size=4, first_step=0, steps=10**6)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("mebibytes", "expected"), [(0, 1), (64, 1), (127, 1), (128, 2), (200, 3), (9999, 8)]
)
def test_how_many_batches_are_read_ahead(mebibytes: float, expected: int) -> None:
    # 4 readers, batches of 16 MiB.
    assert stream._ahead(int(mebibytes * 2**20), 16 << 20, 4) == expected


def test_a_stream_reads_only_as_far_ahead_as_it_says(
    demo_tissue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    read_one = stream.Loader.read

    def counting(self, number):
        numbers.append(number)
        return read_one(self, number)

    monkeypatch.setattr(stream.Loader, "read", counting)
    one_batch = 2 * 64 * 64 * 3
    batches = stream.batches(
        demo_tissue,
        CONFIG,
        9,
        batch_size=2,
        first_step=0,
        steps=100,
        prefetch_bytes=3 * one_batch - 1,
    )
    next(batches)
    time.sleep(0.5)
    assert numbers == [0, 1, 2]
    batches.close()


def test_what_travels_to_workers_is_small(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(*((f"s{n}", ring, 0.5, 1000) for n in range(100)))
    plan = stream.Plan(
        cohort_path=table.path,
        config=CONFIG,
        seed=0,
        batch_size=1,
        first_step=0,
        steps=1,
        rank=0,
        world_size=1,
        distinct=0,
        patches_per_window=1,
        policy="finer",
        idct=True,
    )
    assert len(pickle.dumps(stream.Loader(plan, 2))) < 2000
