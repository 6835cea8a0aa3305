"""The cache of remote tiles: bounded, shared, safe to kill, and never in the way."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest
import servers

from pathfm_cli import errors
from pathfm_cli.cli import options
from pathfm_cli.wsi import cache, remote, store


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, "")
    monkeypatch.setenv(cache.SIZE_VARIABLE, "20")
    cache.counts.clear()
    yield
    cache._open.cache_clear()


def name(number: int) -> bytes:
    return cache.key("s3://b/a.svs", "v1", number, 5)


def fill(kept: cache.Cache, numbers: range, size: int) -> None:
    for number in numbers:
        kept.put(name(number), number.to_bytes(2, "big") * (size // 2))
    kept.flush()


def test_what_is_put_is_found_by_uri_version_and_place(tmp_path: Path) -> None:
    kept = cache.Cache(tmp_path, 10**6)
    kept.put(name(7), b"12345")
    kept.flush()
    assert kept.get(name(7)) == b"12345"
    assert cache.Cache(tmp_path, 10**6).get(name(7)) == b"12345"
    for other in (
        cache.key("s3://b/b.svs", "v1", 7, 5),
        cache.key("s3://b/a.svs", "v2", 7, 5),
        cache.key("s3://b/a.svs", "v1", 8, 5),
        cache.key("s3://b/a.svs", "v1", 7, 6),
    ):
        assert kept.get(other) is None
    assert (cache.counts["hits"], cache.counts["misses"]) == (2, 4)


def test_the_bound_holds_and_what_was_used_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "TOUCH_S", -1)
    now = [1000.0]
    monkeypatch.setattr(cache.time, "time", lambda: now[0])
    kept = cache.Cache(tmp_path, 100_000)
    for begin in range(0, 80, 20):
        now[0] += 1
        fill(kept, range(begin, begin + 20), 1000)
    now[0] += 1
    assert kept.get(name(0)) is not None
    kept.flush()
    now[0] += 1
    fill(kept, range(100, 130), 1000)
    found = [number for number in range(130) if kept.get(name(number)) is not None]
    assert 0 in found and set(range(100, 130)) < set(found)
    # The oldest went, down to 95 % of the bound.
    assert len(found) == 95
    assert set(range(1, 16)).isdisjoint(found) and 16 in found
    fill(kept, range(1000, 3000), 1000)
    with sqlite3.connect(kept.path) as look:
        assert look.execute("SELECT SUM(size) FROM tiles").fetchone()[0] <= 100_000
        assert look.execute("SELECT size FROM total").fetchone() == (
            look.execute("SELECT SUM(size) FROM tiles").fetchone()[0],
        )
        look.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert kept.path.stat().st_size < 700_000


def test_a_damaged_tile_is_a_miss(tmp_path: Path) -> None:
    kept = cache.Cache(tmp_path, 10**6)
    fill(kept, range(2), 100)
    with sqlite3.connect(kept.path) as other:
        other.execute("UPDATE tiles SET data = x'00' WHERE key = ?", (name(0),))
    assert kept.get(name(0)) is None
    assert kept.get(name(1)) is not None
    assert cache.counts["damaged"] == 1
    fill(kept, range(1), 100)
    assert kept.get(name(0)) == b"\0\0" * 50


def test_a_file_that_is_no_database_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / cache.NAME).write_bytes(b"no database at all " * 1000)
    kept = cache.Cache(tmp_path, 10**6)
    fill(kept, range(1), 10)
    assert kept.get(name(0)) == b"\0\0" * 5
    assert "was damaged: the cache starts anew" in caplog.text


def test_a_full_disk_is_told_once_and_tolerated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = cache.Cache(tmp_path, 10**9)
    fill(kept, range(10), 1000)
    original = kept._connect

    def small() -> sqlite3.Connection:
        writer = original()
        # SQLite's own bound gives the very error of a full disk.
        writer.execute("PRAGMA max_page_count = 40")
        return writer

    full = cache.Cache.__new__(cache.Cache)
    full._connect = small
    full.__init__(tmp_path, 10**9)
    for number in range(100, 200):
        full.put(name(number), bytes(20_000))
        full.flush()
    assert caplog.text.count("tiles are not kept at the moment (database or disk is full)") == 1
    assert all(full.get(name(number)) is not None for number in range(10))
    assert full.get(name(199)) is None


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    kept = cache.Cache(tmp_path / "never" / "made", 10**6)
    kept.put(name(0), b"x")
    kept.flush()
    assert kept.get(name(0)) is None


WRITER = """
import sys
from pathlib import Path
from pathfm_cli.wsi import cache
kept = cache.Cache(Path(sys.argv[1]), 300_000)
number = int(sys.argv[2])
while True:
    name = cache.key("u", "v", number, 5)
    kept.put(name, number.to_bytes(4, "big") * 250)
    if number % 500 == 0:
        kept.flush()
        print(number, flush=True)
    number += 1
"""


def test_processes_share_it_and_may_be_killed_at_any_time(tmp_path: Path) -> None:
    for start in (0, 10_000, 20_000):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        pair = [
            subprocess.Popen([*command, str(start + shift)], stdout=subprocess.PIPE)
            for shift in (0, 5000)
        ]
        for process in pair:
            for _ in range(3):
                process.stdout.readline()
        time.sleep(0.05)
        for process in pair:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
    with sqlite3.connect(tmp_path / cache.NAME) as look:
        assert look.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = look.execute("SELECT data FROM tiles").fetchall()
        (total,) = look.execute("SELECT size FROM total").fetchone()
    assert 200 < len(rows) and total == 1000 * len(rows) <= 300_000
    assert all(len(set(data[i : i + 4] for i in range(0, 1000, 4))) == 1 for (data,) in rows)
    kept = cache.Cache(tmp_path, 300_000)
    fill(kept, range(1), 10)
    assert kept.get(name(0)) is not None


def test_the_second_read_of_a_tile_asks_nothing(tmp_path: Path) -> None:
    body = os.urandom(100_000)
    (tmp_path / "x.bin").write_bytes(body)
    cache.use(tmp_path / "cache", 0.001)
    ranges = [(0, 500), (500, 700), (50_000, 900), (20_000, 5)]
    with servers.web(tmp_path) as server:
        source = store.Source.open(f"{server}/x.bin")
        for round in range(2):
            assert source.read_many(ranges) == [body[a : a + n] for a, n in ranges]
            if round == 0:
                cache.current().flush()
                before = servers.counts(server)
        assert servers.counts(server) == before
        source.prefetch([(1, 2), *ranges])
        assert source.read_many([(500, 700), (1, 2)]) == [body[500:1200], body[1:3]]
        assert servers.counts(server)["GET"] == before["GET"] + 1
        # Another version of the file is another tile.
        (tmp_path / "new").write_bytes(body[::-1])
        (tmp_path / "new").replace(tmp_path / "x.bin")
        assert store.Source.open(f"{server}/x.bin").read_many([(0, 500)]) == [body[::-1][:500]]


def test_many_threads(tmp_path: Path) -> None:
    kept = cache.Cache(tmp_path, 10**7)

    def work(number: int) -> bool:
        kept.put(name(number % 50), (number % 50).to_bytes(2, "big") * 100)
        found = kept.get(name(number % 50))
        return found in (None, (number % 50).to_bytes(2, "big") * 100)

    with futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(2000)))
    kept.flush()
    assert all(kept.get(name(number)) is not None for number in range(50))


def test_folders_and_bounds_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.UsageError, match="is no folder"):
        cache.use(tmp_path / "file")
    with pytest.raises(errors.UsageError, match="a cache needs room"):
        cache.use(tmp_path / "c", 0)
    assert cache.current() is None
    assert options.CACHE_GB == cache.DEFAULT_GB
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(cache.SIZE_VARIABLE, "much")
    with pytest.raises(errors.UsageError, match="PATHFM_CACHE_GB=much is no number"):
        cache.current()


def test_what_is_prefetched_comes_once_and_is_dropped_beyond_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(100_000)
    (tmp_path / "x.bin").write_bytes(body)
    monkeypatch.setattr(remote._pending, "_most", 1500)
    with servers.web(tmp_path) as server:
        source = store.Source.open(f"{server}/x.bin")
        source.prefetch([(0, 500), (20_000, 500)])
        source.prefetch([(0, 500)])
        assert source.read_many([(0, 500), (20_000, 500)]) == [body[:500], body[20_000:20_500]]
        # Both who asked for it get what came once.
        assert source.read_many([(0, 500)]) == [body[:500]]
        assert servers.counts(server)["GET"] == 2
        assert source.read_many([(0, 500)]) == [body[:500]]
        assert servers.counts(server)["GET"] == 3
        # Of four, the first is forgotten and read again when it is needed.
        wanted = [(place, 500) for place in (0, 20_000, 40_000, 60_000)]
        source.prefetch(wanted)
        assert source.read_many(wanted) == [body[a : a + n] for a, n in wanted]
        assert servers.counts(server)["GET"] == 8
    assert remote._pending._bytes == 0
