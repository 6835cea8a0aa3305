import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest
import servers

from pathfm_cli import errors
from pathfm_cli.wsi import remote, retry, store

BODY = random.Random(1).randbytes(300_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web")
    (path / "a folder").mkdir()
    (path / "a folder" / "x+ü%.bin").write_bytes(BODY)
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with servers.web(folder) as address:
        yield f"{address}/a%20folder/x%2B%C3%BC%25.bin"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    pytest.importorskip("moto")
    with servers.s3() as address, pytest.MonkeyPatch.context() as patch:
        servers.bucket(address, "slides", {"a b/1.bin": BODY, "a b/2+ü.bin": BODY[:9], "c": b"x"})
        patch.setenv("AWS_ENDPOINT_URL", address)
        for name, value in servers.KEYS.items():
            patch.setenv(name, value)
        remote.client.cache_clear()
        yield address
    remote.client.cache_clear()


def test_ranges_over_http(address: str) -> None:
    source = store.Source.open(address)
    assert source.size == len(BODY)
    assert source.read(0, 0) == b""
    assert source.read(5, 90) == BODY[5:95]
    ranges = [(100_000, 7), (0, 10), (10, 10), (9000, 1), (100_003, 9), (299_999, 1)]
    assert source.read_many(ranges) == [BODY[a : a + n] for a, n in ranges]
    with pytest.raises(errors.SlideError, match="it ends at byte 300000"):
        source.read(299_999, 2)


def test_neighbours_come_in_one_request(address: str, folder: Path) -> None:
    source = store.Source.open(address)
    server = address.split("/a%20")[0]
    before = servers.counts(server)
    source.read_many([(0, 100), (100, 100), (200 + remote.GAP_BYTES, 100), (20_000, 5)])
    after = servers.counts(server)
    assert after["GET"] - before["GET"] == 2
    assert after["bytes"] - before["bytes"] == 300 + remote.GAP_BYTES + 5


def test_a_version_is_not_asked_for_but_checked(folder: Path, address: str) -> None:
    known = store.Source.open(address)
    server = address.split("/a%20")[0]
    before = servers.counts(server)
    source = store.open_version(address, known.size, known.etag)
    assert store.open_version(address, known.size, known.etag) is source
    assert servers.counts(server) == before
    assert source.read(1, 2) == BODY[1:3]
    for size, etag in ((known.size, "other"), (known.size + 1, known.etag)):
        with pytest.raises(errors.SlideError, match="has changed since it was indexed"):
            store.open_version(address, size, etag).read(1, 2)


def test_an_object_that_is_replaced_or_deleted_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(50_000))
    with servers.web(tmp_path) as server:
        source = store.Source.open(f"{server}/x.bin")
        assert source.read(40_000, 3) == bytes(3)
        for size in (50_000, 10):
            (tmp_path / "new").write_bytes(b"1" * size)
            (tmp_path / "new").replace(path)
            with pytest.raises(errors.SlideError, match="has changed since it was indexed"):
                source.read(40_000, 3)
        path.unlink()
        with pytest.raises(errors.SlideError, match=r"x.bin: does not exist$"):
            source.read(0, 3)


def test_faults_are_tried_again(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(BODY)
    faults = (
        "--fail",
        "0.1",
        "--reset",
        "0.1",
        "--cut",
        "0.1",
        "--stall",
        "0.02",
        "--stall-s",
        ".2",
    )
    with servers.web(tmp_path, *faults) as server:
        before = remote.counts["retries"]
        source = store.Source.open(f"{server}/x.bin")
        ranges = [(n * 20_000 % 290_000, 1000 + n) for n in range(400)]
        with futures.ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda place: source.read(*place), ranges))
        assert found == [BODY[a : a + n] for a, n in ranges]
        told = servers.counts(server)
        assert min(told[name] for name in ("fail", "reset", "cut", "stall")) > 0
        assert remote.counts["retries"] - before == told["fail"] + told["reset"] + told["cut"]


def test_a_server_that_never_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.bin").write_bytes(BODY)
    monkeypatch.setattr(retry, "LONGEST_S", 0.01)
    with servers.web(tmp_path, "--fail", "1") as server:
        with pytest.raises(errors.SlideError, match="8 tries failed .status 503 Service Unavail"):
            store.Source.open(f"{server}/x.bin")
    with pytest.raises(errors.SlideError, match="8 tries failed .*error sending request"):
        store.Source.open(f"{server}/x.bin")


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.bin").write_bytes(BODY)
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.2)
    with servers.web(tmp_path, "--stall", "1", "--stall-s", "60") as server:
        source = store.Source.open(f"{server}/x.bin")
        with pytest.raises(errors.SlideError, match="2 tries failed"):
            source.read(0, 1000)


def test_waits_double_with_full_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    monkeypatch.setattr(retry._random, "uniform", lambda low, high: high - low)

    def fail() -> None:
        raise retry.Transient("no")

    with pytest.raises(retry.Transient):
        retry.call(fail)
    assert slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("ftp://host/x.svs", "ftp:// is not known"),
        ("s3:///x.svs", "names no bucket"),
        ("https://host/x.svs?token=secret", "a password, a signature or a query"),
        ("https://me:secret@host/x.svs", "a password, a signature or a query"),
    ],
)
def test_urls_that_are_refused(uri: str, sentence: str) -> None:
    with pytest.raises(errors.SlideError, match=sentence) as told:
        store.open_source(uri)
    assert "secret" not in str(told.value) or "token" in uri


def test_s3(bucket: str) -> None:
    found = remote.listing("s3://slides/a b/")
    assert [(entry.uri, entry.size) for entry in found] == [
        ("s3://slides/a b/1.bin", 300_000),
        ("s3://slides/a b/2+ü.bin", 9),
    ]
    for entry in found:
        source = store.Source.open(entry.uri)
        assert (source.size, source.etag) == (entry.size, entry.etag)
        assert source.read(3, 6) == BODY[3:9]
    assert len(remote.listing("s3://slides")) == 3
    assert remote.listing("s3://slides/a") == []
    with pytest.raises(errors.SlideError, match="s3://slides/nothing: does not exist"):
        store.Source.open("s3://slides/nothing")
    with pytest.raises(errors.SlideError, match="s3://absent: cannot be read .status 404"):
        remote.listing("s3://absent")


def test_a_public_bucket_needs_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.bucket(bucket, "tcga-2-open", {"x": b"abc"})
    for name in servers.KEYS:
        monkeypatch.delenv(name)
    remote.client.cache_clear()
    assert store.Source.open("s3://tcga-2-open/x").read(0, 3) == b"abc"
    with pytest.raises(errors.SlideError) as told:
        store.Source.open("s3://slides/c")
    assert "AWS_SKIP_SIGNATURE=true" in told.value.hint
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    remote.client.cache_clear()
    assert store.Source.open("s3://slides/c").read(0, 1) == b"x"
    remote.client.cache_clear()


FORK = """
import os, sys
from pathfm_cli import errors
from pathfm_cli.wsi import store
source = store.Source.open(sys.argv[1])
if os.fork() == 0:
    try:
        source.read(0, 3)
    except errors.PathfmError as error:
        os._exit(7 if "was forked" in str(error) else 1)
    os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_refused_not_left_hanging(address: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, address], timeout=30)
    assert done.returncode == 7


def test_local_paths_load_no_obstore() -> None:
    code = (
        "import sys; from pathfm_cli.wsi import store;"
        "store.Source.open(sys.executable).read(0, 4);"
        "sys.exit('obstore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
