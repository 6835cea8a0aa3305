"""A cache of remote tiles on a local disk: bounded, shared by processes, safe to kill.

One SQLite file in write-ahead mode holds the bytes, so a killed process leaves it whole and many
processes read it while one writes. Tiles not used for longest go first. The cache never stands in
the way: a full disk, a lock that lasts or a damaged file only means that tiles come from the store.
A tile is known by uri, version (etag), offset and length, and checked by its CRC-32.

The folder and its bound come from the environment, which workers inherit; see `use`.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import hashlib
import logging
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pathfm_cli import addresses, errors

FOLDER_VARIABLE = "PATHFM_CACHE"
SIZE_VARIABLE = "PATHFM_CACHE_GB"
DEFAULT_GB = 20.0
MAX_GB = 1_000_000
NAME = "tiles.sqlite"
SLACK = 0.05
"""Share of the bound that is freed at once when it is reached."""
TOUCH_S = 600
"""A tile's last use is recorded to this precision, so that most reads write nothing."""
QUEUE_TILES = 4096
"""Tiles that wait to be written; what comes beyond is not cached this time."""
BUSY_S = 10.0
FINISH_S = 5.0
"""How long the end of a process waits for tiles to be written."""

_SCHEMA = """
PRAGMA page_size = 8192;
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS tiles(
    key BLOB PRIMARY KEY, used INTEGER NOT NULL, crc INTEGER NOT NULL, size INTEGER NOT NULL,
    data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_use ON tiles(used, size);
CREATE TABLE IF NOT EXISTS total(size INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
"""

log = logging.getLogger("pathfm.cache")
counts: collections.Counter[str] = collections.Counter()
"""What the cache of this process did: `hits`, `misses`, `written`, `dropped`, `damaged`."""


def use(folder: str | os.PathLike[str], gigabytes: float = DEFAULT_GB) -> None:
    """Let this process and those it starts keep remote tiles in `folder`.

    Raises:
        errors.UsageError: the folder cannot be made or written, or the bound is not positive.
    """
    if not 0 < gigabytes < MAX_GB:
        raise errors.UsageError(
            f"--cache-gb {gigabytes}: a cache has between 0 and {MAX_GB:,} GB.", "--cache-gb 20"
        )
    _refuse_address("--cache ", os.fspath(folder))
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UsageError(
            f"--cache {path} is no folder ({error.strerror}).", "a folder on a local disk"
        ) from error
    if not os.access(path, os.W_OK):
        raise errors.UsageError(f"--cache {path} cannot be written.", "a folder on a local disk")
    os.environ[FOLDER_VARIABLE] = str(path)
    os.environ[SIZE_VARIABLE] = str(gigabytes)


def current() -> Cache | None:
    """The cache of this process, or None if none was asked for."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    _refuse_address(f"{FOLDER_VARIABLE}=", folder)
    return _open(os.getpid(), folder, os.environ.get(SIZE_VARIABLE, str(DEFAULT_GB)))


def _refuse_address(asked: str, folder: str) -> None:
    if addresses.is_address(folder):
        raise errors.UsageError(f"{asked}{folder} is an address.", "a folder on a local disk")


@functools.lru_cache(maxsize=1)
def _open(process: int, folder: str, gigabytes: str) -> Cache:
    try:
        bound = int(float(gigabytes) * 1e9)
    except (ValueError, OverflowError) as error:
        raise errors.UsageError(
            f"{SIZE_VARIABLE}={gigabytes} is no number of gigabytes.", f"{SIZE_VARIABLE}=20"
        ) from error
    return Cache(Path(folder), bound)


def key(uri: str, etag: str, offset: int, length: int) -> bytes:
    """The name of a range of one version of a file: 28 bytes."""
    version = hashlib.sha256(f"{uri}\0{etag}".encode()).digest()[:16]
    return version + offset.to_bytes(8, "big") + length.to_bytes(4, "big")


class Cache:
    """The tiles of one folder; thread-safe. Its methods never raise for the disk's sake."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open or make it.

        Args:
            folder: where the file lies.
            max_bytes: bound of the tiles' bytes; the file is a few percent larger.
        """
        self.path = folder / NAME
        self._max = max_bytes
        self._lock = threading.Lock()
        self._work: queue.Queue[tuple[bytes, bytes | None]] = queue.Queue(QUEUE_TILES)
        self._working = True
        self._reader: sqlite3.Connection | None = None
        with self._guard():
            self._reader = self._connect()
        threading.Thread(target=self._write_all, name="pathfm-cache", daemon=True).start()
        atexit.register(self._finish)

    def get(self, name: bytes) -> bytes | None:
        """The bytes kept under a name, or None."""
        found = None
        with self._lock, self._guard():
            if self._working and self._reader is not None:
                found = self._reader.execute(
                    "SELECT data, crc, used FROM tiles WHERE key = ?", (name,)
                ).fetchone()
        if found is not None and zlib.crc32(found[0]) != found[1]:
            counts["damaged"] += 1
            found = None
        counts["misses" if found is None else "hits"] += 1
        if found is None:
            return None
        if time.time() - found[2] > TOUCH_S:
            self._queue(name, None)
        return bytes(found[0])

    def put(self, name: bytes, data: bytes) -> None:
        """Keep bytes, some time soon; another thread writes them."""
        self._queue(name, data)

    def flush(self) -> None:
        """Wait until everything that was put is written or given up."""
        self._work.join()

    def _finish(self) -> None:
        """At the end of the process: let what waits be written, but not for long."""
        end = time.monotonic() + FINISH_S
        while self._working and self._work.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)

    def _queue(self, name: bytes, data: bytes | None) -> None:
        try:
            if self._working:
                self._work.put_nowait((name, data))
        except queue.Full:
            counts["dropped"] += 1

    def _connect(self) -> sqlite3.Connection:
        """A connection; a file that is no database any more is replaced."""
        try:
            return self._connect_once()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            log.warning("%s was damaged: the cache starts anew", self.path)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            return self._connect_once()

    def _connect_once(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        return connection

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what the disk does into a cache that is off, told once."""
        try:
            yield
        except sqlite3.Error as error:
            if self._working:
                self._working = False
                log.warning("%s: the cache is off (%s)", self.path, error)

    def _write_all(self) -> None:
        writer: sqlite3.Connection | None = None
        while True:
            batch = [self._work.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < 256:
                    batch.append(self._work.get_nowait())
            try:
                if self._working:
                    writer = writer or self._connect()
                    self._write(writer, batch)
            except sqlite3.OperationalError as error:
                self._refused(writer, error)
            except sqlite3.Error:
                with self._guard():
                    raise
            finally:
                for _ in batch:
                    self._work.task_done()

    def _refused(self, writer: sqlite3.Connection | None, error: sqlite3.OperationalError) -> None:
        """A full disk or a lock that lasts: these tiles are not kept; later ones may be."""
        counts["dropped"] += 1
        if counts["dropped"] == 1:
            log.warning("%s: tiles are not kept at the moment (%s)", self.path, error)
        if writer is not None and writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                writer.execute("ROLLBACK")

    def _write(
        self, writer: sqlite3.Connection, batch: Sequence[tuple[bytes, bytes | None]]
    ) -> None:
        now = int(time.time())
        writer.execute("BEGIN IMMEDIATE")
        added = 0
        for name, data in batch:
            if data is None:
                writer.execute("UPDATE tiles SET used = ? WHERE key = ?", (now, name))
                continue
            # Another process may have been faster; a damaged tile is replaced.
            old = writer.execute("SELECT size FROM tiles WHERE key = ?", (name,)).fetchone()
            row = (name, now, zlib.crc32(data), len(data), data)
            writer.execute("REPLACE INTO tiles VALUES (?, ?, ?, ?, ?)", row)
            added += len(data) - (old[0] if old else 0)
            counts["written"] += 1
        writer.execute("UPDATE total SET size = size + ?", (added,))
        (total,) = writer.execute("SELECT size FROM total").fetchone()
        if total > self._max:
            self._evict(writer, total - int(self._max * (1 - SLACK)))
        writer.execute("COMMIT")
        if total > self._max:
            writer.execute("PRAGMA incremental_vacuum").fetchall()

    def _evict(self, writer: sqlite3.Connection, need: int) -> None:
        """Remove the tiles that were not used for longest, `need` bytes of them."""
        freed = 0
        gone = []
        for row, size in writer.execute("SELECT rowid, size FROM tiles ORDER BY used, rowid"):
            if freed >= need:
                break
            freed += size
            gone.append((row,))
        writer.executemany("DELETE FROM tiles WHERE rowid = ?", gone)
        writer.execute("UPDATE total SET size = size - ?", (freed,))
