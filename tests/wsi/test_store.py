import os
import threading
from concurrent import futures
from pathlib import Path

import pytest

from pathfm_cli import errors
from pathfm_cli.wsi import store


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def numbered(tmp_path: Path) -> list[str]:
    paths = []
    for number in range(200):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(number.to_bytes(2, "big") * 50)
        paths.append(str(path))
    return paths


def test_ranges() -> None:
    source = store.Source.open(__file__)
    whole = Path(__file__).read_bytes()
    assert source.size == len(whole)
    assert source.read(7, 20) == whole[7:27]
    assert source.read(source.size, 0) == b""
    assert source.read_many([(3, 2), (0, 5)]) == [whole[3:5], whole[:5]]
    assert source.etag == str(os.stat(__file__).st_mtime_ns)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 10**9), (10**9, 1), (3, -1)])
def test_no_read_past_the_end(offset: int, length: int) -> None:
    with pytest.raises(errors.SlideError, match="it ends at byte"):
        store.Source.open(__file__).read(offset, length)


def test_open_files_are_bounded_and_each_is_the_right_one(numbered: list[str]) -> None:
    before = open_descriptors()

    def check(number: int) -> bool:
        data = store.open_source(numbered[number % 200]).read(4, 2)
        return data == (number % 200).to_bytes(2, "big")

    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(4000)))
    assert open_descriptors() - before <= store.MAX_OPEN_FILES


def test_a_file_in_use_survives_its_eviction(numbered: list[str]) -> None:
    source = store.open_source(numbered[0])
    for path in numbered[1:]:
        store.open_source(path)
    assert store.open_source(numbered[0]) is not source
    assert source.read(0, 2) == b"\0\0"


def test_the_same_source_is_shared_until_it_is_forgotten(numbered: list[str]) -> None:
    source = store.open_source(numbered[0])
    assert store.open_source(numbered[0]) is source
    store.forget(numbered[0])
    assert store.open_source(numbered[0]) is not source


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("/nowhere/a.svs", "/nowhere/a.svs: does not exist"),
        ("/usr", "/usr: not a file"),
        ("/", "/: holds no .dcm file"),
        ("ftp://host/a.svs", "ftp:// is not known"),
    ],
)
def test_what_cannot_be_opened(uri: str, sentence: str) -> None:
    with pytest.raises(errors.SlideError, match=sentence):
        store.open_source(uri)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    source = store.Source.open(str(path))
    path.write_bytes(bytes(10))
    with pytest.raises(errors.SlideError, match="became shorter"):
        source.read(0, 100)


def test_threads_may_share_a_source(numbered: list[str]) -> None:
    source = store.Source.open(numbered[150])
    wrong = []

    def work() -> None:
        wrong.extend(1 for _ in range(2000) if source.read(10, 2) != b"\0\x96")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
