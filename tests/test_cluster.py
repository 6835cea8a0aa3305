"""Dask: two workers write what one process writes, whatever dies meanwhile."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from processes import pathfm

from pathfm_cli import artifacts, cluster, errors

pytest.importorskip("distributed")

MODEL = "random/test_vit"
DEMO = Path(cluster.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"


def chain(folder: Path, slides: Path, *spread: str) -> Path:
    """Run the four verbs with these options; the folder of their results."""
    folder.mkdir()
    steps: Sequence[Sequence[str | Path]] = (
        ("index", slides, "-o", folder / "s.parquet"),
        ("mask", folder / "s.parquet", "--method", "otsu", "-o", folder / "t.parquet"),
        (
            *("sample", folder / "t.parquet", "--grid", "--mpp", "4", "--size", "64"),
            *("-o", folder / "p.parquet"),
        ),
        ("embed", folder / "p.parquet", "--model", MODEL, "-o", folder / "e.parquet"),
    )
    for step in steps:
        done = pathfm(*step, *spread, cwd=folder)
        assert done.returncode in (0, 4), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small slides, one of them broken."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("a", "c", "d"):
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
    spread = chain(tmp_path / "spread", few, "--dask", "local:2")
    assert_equal(plain, spread)
    rows = pl.read_parquet(spread / "s.parquet")
    assert rows["error"].is_null().to_list() == [True, False, True, True]


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
    with cluster.spread("local:1") as spread:
        assert spread is not None
        assert list(spread.map(deadly, range(3), lambda piece: -piece)) == [0, -1, 2]


def slowly_deadly(piece: int) -> int:
    time.sleep(0.3)
    return deadly(piece)


def test_neighbours_of_a_piece_that_kills_are_not_given_up() -> None:
    with cluster.spread("local:1") as spread:
        assert spread is not None
        found = list(spread.map(slowly_deadly, range(5), lambda piece: -piece))
    assert found == [0, -1, 2, 3, 4]


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


def test_workers_of_embed_compute_in_the_precision_that_is_recorded(tmp_path: Path) -> None:
    from pathfm_cli.model import weights
    from pathfm_cli.tasks import apart, embed, images

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    data, encoder = images.open_images(tmp_path), weights.load(MODEL, precision="fp32")
    found = apart.job(lambda: data, MODEL, {"precision": "auto"}, data, encoder, embed.Reading())
    assert found.loading.keywords == {"precision": "fp32"}  # type: ignore[attr-defined]


def test_nobody_at_the_address(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with cluster.spread("tcp://127.0.0.1:1") as spread:
        assert spread is not None
        with pytest.raises(errors.PathfmError, match="No scheduler with a worker answers"):
            list(spread.map(deadly, [0]))


def test_what_listens_at_the_address_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with cluster.spread(address) as spread:
            assert spread is not None
            with pytest.raises(errors.PathfmError, match="No scheduler with a worker answers"):
                list(spread.map(deadly, [0]))


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A scheduler and two workers as other programs started them."""
    code = "import distributed.cli.dask_{0} as d; d.main()"
    address = "tcp://127.0.0.1:18786"
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(name), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            **quiet,
        )
        for name, arguments in (
            ("scheduler", ["--host", "127.0.0.1", "--port", "18786", "--no-dashboard"]),
            ("worker", [address, "--nthreads", "1", "--no-dashboard"]),
            ("worker", [address, "--nthreads", "1", "--no-dashboard"]),
        )
    ]
    yield address
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_a_scheduler_that_is_there_already(
    few: Path, plain: Path, scheduler: str, tmp_path: Path
) -> None:
    assert_equal(plain, chain(tmp_path / "spread", few, "--dask", scheduler))
