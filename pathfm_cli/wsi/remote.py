"""Files behind URLs, by range: s3://, gs://, az://, http:// and https://, through obstore.

Every answer is checked: its length, and its etag against the version that was indexed. What may
pass (503, resets, time-outs, bodies that end early) is tried again, see `retry`; what will not
(404, 403, another etag) is an error at once. Credentials come from the environment; docs/stores.md.

obstore's threads do not survive a fork, so clients are made at first use in each process, and a
process that was forked after that is refused instead of left hanging.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, TypeVar
from urllib import parse

import obstore
from obstore import exceptions
from obstore import store as stores

from pathfm_cli import addresses, errors
from pathfm_cli.wsi import cache, pending, retry, store

IN_FLIGHT = 128
"""Requests under way at once, per process: 64 patches, each of two rows of tiles."""
GAP_BYTES = 8 << 10
"""Bytes between two ranges that are fetched along, because a request of its own costs more."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 15
"""Longest silence in the middle of an answer."""
TIMEOUT_S = 90
"""Longest time for one request."""
PUBLIC = ("s3://tcga-2-open", "s3://idc-open-data", "gs://idc-open-data")
"""Buckets that are read without credentials."""

_PERMANENT = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
)
_METADATA = "169.254.169.254"
_CONFIGURED = ("AWS_", "AZURE_", "GOOGLE_")
"""Variables that obstore reads; it ends in a panic over one that fits in no header."""
_STATUS = re.compile(r"status code: (\d{3})")
_CREDENTIALS = (
    "credentials in the environment (such as AWS_ACCESS_KEY_ID), or AWS_SKIP_SIGNATURE=true for a "
    "public bucket; AWS_REGION, AWS_ENDPOINT_URL"
)

T = TypeVar("T")
_pending = pending.Pending()
counts: collections.Counter[str] = collections.Counter()
"""What this process did: `requests`, `bytes`, `retries`."""
_counting = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An object that a listing found."""

    uri: str
    size: int
    etag: str


class Remote(store.Source):
    """An object of a known version; nothing is asked before it is read."""

    def __init__(self, uri: str, size: int, etag: str) -> None:
        self.uri, self.size, self.etag = uri, size, etag
        self._base, self._path = split(uri)

    @staticmethod
    def open(uri: str) -> Remote:
        """Ask for the version of an object.

        Raises:
            errors.SlideError: it does not exist or may not be read.
        """
        base, path = split(uri)
        meta = _call(uri, lambda: obstore.head(client(base), path))
        return Remote(uri, meta["size"], _etag(meta))

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; see `Source.read`."""
        self.check(offset, length)
        return bytes(self._view(offset, length))

    def read_many(self, ranges: Sequence[store.Range]) -> list[bytes]:
        """Return the bytes of every range, in order; up to `IN_FLIGHT` requests at once."""
        parts = [_pending.take(self._key(place)) for place in ranges]
        missing = [place for place, part in zip(ranges, parts, strict=True) if part is None]
        started = iter(self._start(missing))
        return [(part or next(started)).result() for part in parts]

    def prefetch(self, ranges: Sequence[store.Range]) -> None:
        """Ask for ranges now; the `read_many` that needs them waits for what is on its way."""
        ranges = [place for place in ranges if not _pending.claim(self._key(place))]
        for place, part in zip(ranges, self._start(ranges), strict=True):
            _pending.put(self._key(place), part)

    def _start(self, ranges: Sequence[store.Range]) -> list[pending.Part]:
        """Each range as something that will be here: from the cache, or on its way."""
        for place in ranges:
            self.check(*place)
        parts: dict[int, pending.Part] = {}
        kept = cache.current()
        if kept is not None:
            for number, place in enumerate(ranges):
                data = kept.get(cache.key(*self._key(place)))
                if data is not None:
                    parts[number] = pending.Part(_done(data), 0, len(data))
        missing = [number for number in range(len(ranges)) if number not in parts]
        wanted = [ranges[number] for number in missing]
        for run in store.merge(wanted, GAP_BYTES):
            members = [wanted[member] for member in run.members]
            future = pool().submit(self._fetch, run, members, kept)
            for member, (offset, length) in zip(run.members, members, strict=True):
                parts[missing[member]] = pending.Part(future, offset - run.offset, length)
        return [parts[number] for number in range(len(ranges))]

    def _fetch(
        self, run: store.Run, members: Sequence[store.Range], kept: cache.Cache | None
    ) -> memoryview:
        data = self._view(run.offset, run.length)
        if kept is not None:
            for offset, length in members:
                begin = offset - run.offset
                tile = bytes(data[begin : begin + length])
                kept.put(cache.key(*self._key((offset, length))), tile)
        return data

    def _key(self, place: store.Range) -> pending.Key:
        return self.uri, self.etag, *place

    def _view(self, offset: int, length: int) -> memoryview:
        """As `read`, but not copied out of the answer."""
        if not length:
            return memoryview(b"")
        return _call(self.uri, lambda: self._get(offset, length))

    def _get(self, offset: int, length: int) -> memoryview:
        result = obstore.get(
            client(self._base), self._path, options={"range": (offset, offset + length)}
        )
        meta = result.meta
        if (meta["size"], _etag(meta)) != (self.size, self.etag):
            raise store.changed(self.uri)
        data = memoryview(result.bytes())
        if len(data) != length:
            raise retry.Transient(f"{len(data)} bytes came, not {length}")
        count("bytes", length)
        return data


def listing(uri: str) -> list[Entry]:
    """Every object below a prefix that ends at a `/` of the key, sorted by key.

    Raises:
        errors.SlideError: the bucket cannot be listed.
    """
    base, prefix = split(uri)

    def walk() -> Iterator[Entry]:
        for page in obstore.list(client(base), prefix.rstrip("/") or None, chunk_size=1000):
            for meta in page:
                yield Entry(f"{base}/{meta['path']}", meta["size"], _etag(meta))

    return sorted(_call(uri, lambda: list(walk())), key=lambda entry: entry.uri)


def versions(uris: Sequence[str]) -> dict[str, Entry | errors.SlideError]:
    """Size and etag of each object, or why it cannot be had; `IN_FLIGHT` at once."""

    def ask(uri: str) -> Entry | errors.SlideError:
        try:
            source = store.Source.open(uri)
        except errors.SlideError as error:
            return error
        return Entry(uri, source.size, source.etag)

    return dict(zip(uris, pool().map(ask, uris), strict=True))


def split(uri: str) -> tuple[str, str]:
    """The store (`s3://bucket`, `https://host`) and the object's name in it.

    Raises:
        errors.SlideError: another scheme, no bucket, or a web address with a query or a password.
    """
    scheme, _, rest = uri.partition("://")
    place, _, path = rest.partition("/")
    if addresses.holds_secret(uri):
        raise errors.SlideError(
            f"{shown(uri)}: an address with a password, a signature or a query cannot be kept in "
            "an index",
            "a plain address, or the bucket itself: s3://BUCKET/NAME",
        )
    if scheme not in store.REMOTE_SCHEMES:
        known = " ".join(f"{name}://" for name in store.REMOTE_SCHEMES)
        raise errors.SlideError(f"{uri}: {scheme}:// is not known", f"known are {known}")
    if not place:
        raise errors.SlideError(f"{uri}: names no bucket or host", f"{scheme}://PLACE/name.svs")
    if scheme.startswith("http"):
        path = parse.unquote(path)
    return f"{scheme}://{place}", path


def shown(uri: str) -> str:
    """An address as it may be printed: without user, password, query and fragment."""
    return re.split(r"[?#]", addresses.without_secrets(uri))[0]


def pool() -> futures.ThreadPoolExecutor:
    """Threads that wait for answers; of this process."""
    return _pool(os.getpid())


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(IN_FLIGHT, "pathfm-remote")


@functools.lru_cache(maxsize=64)
def client(base: str) -> Any:
    """The store of `s3://bucket` or `https://host`, made once in each process.

    Raises:
        errors.PathfmError: this process was forked from one that had made a client.
        errors.SlideError: a setting in the environment cannot be sent.
    """
    if _forked:
        raise errors.PathfmError(
            "This process was forked after its parent had read remote files.",
            'start it by multiprocessing.get_context("spawn")',
        )
    options: Any = {
        "connect_timeout": datetime.timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": datetime.timedelta(seconds=READ_TIMEOUT_S),
        "timeout": datetime.timedelta(seconds=TIMEOUT_S),
        "pool_max_idle_per_host": str(IN_FLIGHT),
        "user_agent": "pathfm",
    }
    plain = base if base.startswith("http") else os.environ.get("AWS_ENDPOINT_URL", "")
    if plain.startswith("http://"):
        options["allow_http"] = True
    for name, value in os.environ.items():
        if name.startswith(_CONFIGURED) and not value.isprintable():
            raise errors.SlideError(f"{name} holds a control character", "set it anew")
    config: Any = {"skip_signature": True} if base in PUBLIC else None
    # Retries are ours, see `retry`: those of the library cannot be counted or bounded together.
    return stores.from_url(
        base, config=config, client_options=options, retry_config={"max_retries": 0}
    )


def _done(data: bytes) -> futures.Future[memoryview]:
    future: futures.Future[memoryview] = futures.Future()
    future.set_result(memoryview(data))
    return future


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = _forked or client.cache_info().currsize > 0
    client.cache_clear()
    _pending.clear()


os.register_at_fork(after_in_child=_after_fork)


def count(name: str, number: int = 1) -> None:
    """Add to `counts`."""
    with _counting:
        counts[name] += number


def _call(uri: str, work: Callable[[], T]) -> T:
    """Run `work`, its failures sorted into those that pass and those that do not."""

    def once() -> T:
        count("requests")
        try:
            return work()
        except FileNotFoundError as error:
            raise errors.SlideError(f"{uri}: does not exist") from error
        except ValueError as error:
            raise errors.SlideError(f"{uri!r}: is no address ({_reason(error)})") from error
        except (exceptions.BaseError, OSError) as error:
            if _status(error) == 416:
                raise store.changed(uri) from error
            if _passes(error):
                raise retry.Transient(_reason(error)) from error
            raise errors.SlideError(
                f"{uri}: cannot be read ({_reason(error)})", _CREDENTIALS
            ) from error

    try:
        return retry.call(once, lambda: count("retries"))
    except retry.Transient as error:
        raise errors.SlideError(
            f"{uri}: cannot be read, {retry.ATTEMPTS} tries failed ({error})"
        ) from error


def _passes(error: Exception) -> bool:
    # No answer from the address where machines of a cloud find their own credentials.
    if isinstance(error, (*_PERMANENT, PermissionError)) or _METADATA in str(error):
        return False
    status = _status(error)
    return status == 0 or status >= 500 or status in (408, 429)


def _status(error: Exception) -> int:
    """The HTTP status in the text of an error; 0 if there was no answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def _reason(error: Exception) -> str:
    """The first line of what obstore says, without the address, which is named already."""
    line = str(error).splitlines()[0].strip() if str(error).strip() else type(error).__name__
    if _METADATA in line:
        return "there are no credentials"
    status = re.search(r"status code: (\d{3}[^:<]*)", line)
    if status:
        return f"status {status[1].strip()}"
    # A query in an address may be a signature.
    return re.sub(r"\?[^\s)]+", "?...", line.rpartition(" - ")[2].strip(" :."))


def _etag(meta: Any) -> str:
    """The version that the store states; where it states none, the time of the last change."""
    tag = meta["e_tag"]
    if tag:
        # Listings and answers differ in quotes, and a proxy that packs bodies makes tags weak.
        return str(tag).removeprefix("W/").strip('"')
    return f"modified {meta['last_modified'].timestamp():.0f}"
