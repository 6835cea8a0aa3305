"""Dask: two workers write what one process writes, whatever dies meanwhile."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from processes import pathfm

from pathfm_cli import artifacts, cluster, errors

pytest.importorskip("distributed")

MODEL = "random/test_vit"
PORT = 20000 + os.getpid() % 10000
"""Of the scheduler; tests run in several processes side by side."""
ADDRESS = f"tcp://127.0.0.1:{PORT}"
AT = ("--host", "127.0.0.1", "--port", str(PORT))
LOST = "processing-tasks"
"""What Dask calls the pieces that a removed worker had under way."""
DEMO = Path(cluster.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"


def steps(slides: Path, folder: Path) -> Sequence[Sequence[str | Path]]:
    """The four verbs, writing to a folder."""
    return (
        ("index", slides, "-o", folder / "s.parquet"),
        ("mask", folder / "s.parquet", "--method", "otsu", "-o", folder / "t.parquet"),
        (
            *("sample", folder / "t.parquet", "--grid", "--mpp", "1,2", "--size", "16"),
            *("--stride", "54", "-o", folder / "p.parquet"),
        ),
        (
            *("embed", folder / "p.parquet", "--model", MODEL, "--image-size", "32"),
            *("-o", folder / "e.parquet"),
        ),
    )


def chain(folder: Path, slides: Path, *spread: str) -> Path:
    """Run the four verbs with these options; the folder of their results."""
    folder.mkdir()
    for step in steps(slides, folder):
        done = pathfm(*step, *spread, cwd=folder)
        assert done.returncode in (0, 4), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small slides, one of them broken: two parts of `sample`, two chunks of `embed`."""
    folder = tmp_path_factory.mktemp("few")
    for name in "acdefghij":
        (folder / f"{name}.svs").symlink_to(DEMO)
    (folder / "broken.svs").write_bytes(b"no slide")
    return folder


@pytest.fixture(scope="module")
def plain(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chain(tmp_path_factory.mktemp("plain") / "out", few)


def assert_equal(one: Path, other: Path) -> None:
    for name in ("s", "t", "p", "e"):
        left, right = (artifacts.read_table(f / f"{name}.parquet") for f in (one, other))
        assert left.header.id == right.header.id, name
        # Rows stand in the same order already; embeddings are compared to the last bit.
        assert left.frame.equals(right.frame), name
    tiles = [artifacts.read_table(f / "s.parquet").file("tiles") for f in (one, other)]
    assert tiles[0].read_bytes() == tiles[1].read_bytes()


def test_two_workers_write_the_artifacts_of_one_process(
    few: Path, plain: Path, tmp_path: Path
) -> None:
    # Not above: workers import this file, and are started often.
    from pathfm_cli.data import sample
    from pathfm_cli.tasks import embed

    spread = chain(tmp_path / "spread", few, "--dask", "local:2")
    assert_equal(plain, spread)
    rows = pl.read_parquet(spread / "s.parquet")
    assert rows["error"].is_null().to_list() == [True, False, *[True] * 8]
    patches = pl.read_parquet(spread / "p.parquet")
    assert patches["slide"].n_unique() == 9 > sample.SLIDES_PER_PART
    assert patches.height > embed.CHUNK


class Slow:
    """Say who works on a piece, then take a while."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self, piece: int) -> int:
        (self.notes / f"{piece}-{os.getpid()}").touch()
        time.sleep(0.2)
        return piece * piece


def kill_one(notes: Path, killed: list[int]) -> None:
    """Wait for the third piece to be begun, and kill who works on it."""
    while not (found := list(notes.glob("3-*"))):
        time.sleep(0.02)
    killed.append(int(found[0].name.partition("-")[2]))
    os.kill(killed[0], signal.SIGKILL)


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(tmp_path, killed))
    killer.start()
    with cluster.spread("local:2") as spread:
        assert spread is not None
        assert list(spread.map(Slow(tmp_path), range(12))) == [n * n for n in range(12)]
    killer.join()
    workers = {int(path.name.partition("-")[2]) for path in tmp_path.glob("3-*")}
    assert killed[0] in workers and len(workers) > 1  # the piece was begun again elsewhere


def deadly(piece: int) -> int:
    if piece == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def test_a_piece_that_kills_every_worker_is_given_up() -> None:
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster.spread("local:1") as spread,
    ):
        assert spread is not None
        assert list(spread.map(deadly, range(3), lambda piece: -piece)) == [0, -1, 2]


class Deadly:
    """Kill who works on piece 3; say who has worked on the others."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self, piece: int) -> int:
        time.sleep(0.05)
        if piece == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.notes / str(piece)).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return piece


def test_neighbours_of_a_piece_that_kills_are_not_given_up(tmp_path: Path) -> None:
    import dask

    # Dask blames all pieces that a dead worker held; here at its first death.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster.spread("local:1") as spread,
    ):
        assert spread is not None
        found = list(spread.map(Deadly(tmp_path), range(8), lambda piece: -piece, together=3))
    assert found == [0, 1, 2, -3, 4, 5, 6, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == list("0124567")


def whose(piece: int) -> tuple[int, int]:
    time.sleep(0.01)
    return piece, os.getpid()


def test_light_pieces_travel_together_where_every_thread_has_some() -> None:
    with cluster.spread("local:2") as spread:
        assert spread is not None
        shares = [spread.share(count, 16) for count in (0, 1, 15, 16, 127, 128, 9999)]
        assert shares == [1, 1, 1, 2, 15, 16, 16]
        found = list(spread.map(whose, range(100), together=10))
    assert [piece for piece, _ in found] == list(range(100))
    parcels = [{who for _, who in found[at : at + 10]} for at in range(0, 100, 10)]
    assert [len(each) for each in parcels] == [1] * 10  # ten pieces, one worker
    assert len(set.union(*parcels)) == 2


def failing(piece: int) -> int:
    raise errors.InputError(f"piece {piece} is wrong.", "another")


def test_errors_of_the_work_come_through_with_their_hint() -> None:
    with cluster.spread("local:1") as spread:
        assert spread is not None
        with pytest.raises(errors.InputError, match="piece 0 is wrong") as told:
            list(spread.map(failing, range(2)))
    assert told.value.hint == "another"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index", "x", "--dask", "here", "-o", "s"], "names no cluster"),
        (["index", "x", "--dask", "local:0", "-o", "s"], "names no cluster"),
        (["index", "x", "--dask", "http://h:1", "-o", "s"], "names no cluster"),
        (["sample", "x", "--n", "3", "--dask", "local:1", "-o", "s"], "spreads a grid"),
        (["embed", "--images", "x", "--dask", "local:1", "-o", "s"], "not image files"),
        (["embed", "x", "--dask", "tcp://h:1", "--cache", "c", "-o", "s"], "the workers have"),
    ],
)
def test_addresses_and_uses_that_are_refused(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    done = pathfm(*arguments, cwd=tmp_path)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("text", ["soon", "0", "inf", "-1"])
def test_a_patience_that_is_no_number_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHFM_DASK_TIMEOUT_S", text)
    with pytest.raises(errors.UsageError, match="PATHFM_DASK_TIMEOUT_S=.* is no number"):
        cluster.check("local:1")


def test_nobody_at_the_address(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHFM_DASK_TIMEOUT_S", "1")
    with cluster.spread("tcp://127.0.0.1:1") as spread:
        assert spread is not None
        with pytest.raises(errors.PathfmError, match="No scheduler with a worker answers"):
            list(spread.map(deadly, [0]))


def test_what_listens_at_the_address_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHFM_DASK_TIMEOUT_S", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with cluster.spread(address) as spread:
            assert spread is not None
            with pytest.raises(errors.PathfmError, match="No scheduler with a worker answers"):
                list(spread.map(deadly, [0]))


def dask(name: str, *arguments: str, before: str = "") -> subprocess.Popen[bytes]:
    """Start a scheduler or worker as other programs do."""
    code = f"{before}; import distributed.cli.dask_{name} as d; d.main()".removeprefix("; ")
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--no-dashboard"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture
def programs() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler; what a test adds ends with it."""
    found = [dask("scheduler", *AT)]
    yield found
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_scheduler_without_pathfm_is_named() -> None:
    lacking = "import sys; sys.modules['pathfm_cli'] = None"
    programs = [dask("scheduler", *AT, before=lacking), worker("--no-nanny")]
    try:
        with cluster.spread(ADDRESS) as spread:
            assert spread is not None
            with pytest.raises(errors.PathfmError, match="scheduler or a worker .* lacks pathfm"):
                list(spread.map(time.sleep, [0]))
    finally:
        for process in programs:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def worker(*arguments: str) -> subprocess.Popen[bytes]:
    return dask("worker", ADDRESS, "--nthreads", "1", *arguments)


@pytest.mark.slow
def test_a_scheduler_that_is_there_already(
    few: Path, plain: Path, programs: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    programs += [worker(), worker()]
    assert_equal(plain, chain(tmp_path / "spread", few, "--dask", ADDRESS))


def test_a_scheduler_that_dies_is_told_in_a_sentence(
    programs: list[subprocess.Popen[bytes]],
) -> None:
    programs.append(worker("--no-nanny"))
    with cluster.spread(ADDRESS) as spread:
        assert spread is not None
        found = spread.map(time.sleep, [0.1] * 100)
        next(found)
        os.killpg(programs[0].pid, signal.SIGKILL)
        with pytest.raises(errors.PathfmError, match="The cluster is gone") as told:
            list(found)
    assert told.value.hint == "the same command goes on from what is finished"


def at_work(client: Any) -> list[str]:
    """Workers that have pieces under way."""
    found = client.processing().items()
    return [name for name, keys in found if any(key.startswith("_apply") for key in keys)]


def kill_at_work(client: Any, pids: dict[str, int], done: threading.Event) -> str:
    """SIGKILL the first worker that has pieces under way; its address, or none until `done`.

    A stopped worker finishes nothing, so that what it has then is under way when it is killed.
    """
    while not done.wait(0.002):
        for name in at_work(client):
            os.kill(pids[name], signal.SIGSTOP)
            time.sleep(0.1)  # until the scheduler has heard what was finished before
            if name in at_work(client):
                os.kill(pids[name], signal.SIGKILL)
                return name
            os.kill(pids[name], signal.SIGCONT)
    return ""


def run_with_a_kill(client: Any, step: Sequence[str | Path]) -> None:
    """Run a verb while a worker that works for it is killed."""
    done, pids = threading.Event(), client.run(os.getpid)
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_at_work, client, pids, done)
        ran = pathfm(*step, "--dask", ADDRESS, "--quiet")
        done.set()
        killed = killing.result()
    assert ran.returncode in (0, 4), ran.stderr
    assert "Traceback" not in ran.stderr, ran.stderr
    lost = [event.get(LOST) for _, event in client.get_events(killed)]
    assert "_apply" in str(lost), step  # the scheduler says that it had pieces of this verb


@pytest.mark.slow(25)
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_worker_killed_during_each_verb_changes_nothing(
    nanny: str, few: Path, plain: Path, programs: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    import distributed

    killed = tmp_path / "killed"
    killed.mkdir()
    programs += [worker(nanny), worker(nanny)]
    with distributed.Client(ADDRESS) as client:
        for step in steps(few, killed):
            client.wait_for_workers(2, timeout=60)
            run_with_a_kill(client, step)
            if nanny == "--no-nanny":  # nobody else starts one again
                programs.append(worker(nanny))
    assert_equal(plain, killed)
