"""Fetch public data sets: resumed where the connection broke, checked, unpacked inside one folder.

Only http and https. A file is complete when its size and published checksum say so; an archive may
name no path outside its folder, no link, and no more bytes than expected.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.client
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pathfm_cli import disk, errors
from pathfm_cli.tasks.datasets import base

Report = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of the file at hand."""

BLOCK = 1 << 20
ATTEMPTS = 5
"""Connections without a new byte before giving up."""
PATIENCE_S = 30.0
MAX_DOWNLOAD_BYTES = 64 << 30
RANGE_BEYOND_END = 416
_TOTAL = re.compile(r"^bytes (\d+)-\d+/(\d+)$")


def sources(facts: base.Facts, mirror: str | None = None) -> list[base.Resource]:
    """What there is to download; `mirror` replaces everything before the file names.

    Raises:
        errors.UsageError: the data set cannot be downloaded, or the mirror is no http(s) address.
    """
    if not facts.resources:
        raise errors.UsageError(
            f"{facts.name} cannot be downloaded by a program ({facts.licence}).",
            facts.instructions,
        )
    if mirror is None:
        return list(facts.resources)
    if not mirror.startswith(("http://", "https://")):
        raise errors.UsageError(f"{mirror} is no http or https address.", "--mirror https://HOST")
    return [_mirrored(resource, mirror.rstrip("/")) for resource in facts.resources]


def download(
    facts: base.Facts,
    resources: Sequence[base.Resource],
    root: Path,
    progress: Report = lambda done, total: None,
    *,
    mirror: str | None = None,
) -> list[str]:
    """Fetch and unpack what is not there yet.

    Args:
        facts: of the data set, for messages.
        resources: as `sources` returns them.
        root: the data folder; made if it is not there.
        progress: see `Report`.
        mirror: as given to `sources`, for the hint of a failure.

    Returns:
        What was made under `root`; empty where all was there.

    Raises:
        errors.PathfmError: no connection, a wrong checksum, a damaged or unsafe archive, or not
            enough space. What was fetched stays; the same command goes on from there.
    """
    made = []
    for resource in resources:
        if present(root, resource):
            continue
        disk.make_folder(root)
        archive = fetch(resource, root, facts.hint(root, mirror), progress)
        unpack(archive, root, resource)
        os.sync()
        archive.unlink()
        made.append(resource.makes)
    return made


def present(root: Path, resource: base.Resource) -> bool:
    """Whether what a resource makes is there: the file, or all images of the folder."""
    made = root / resource.makes
    if not resource.images:
        return made.is_file()
    found = sum(name.endswith(".tif") for _, _, names in os.walk(made) for name in names)
    return found >= resource.images


def fetch(
    resource: base.Resource,
    root: Path,
    again: str,
    progress: Report = lambda done, total: None,
    *,
    pause_s: float = 1.0,
) -> Path:
    """Download one file into `root`, going on from `FILE.part` where there is one.

    Args:
        resource: what.
        root: where to.
        again: the command that goes on where this one failed.
        progress: see `Report`.
        pause_s: wait before the first retry; doubled each time.

    Raises:
        errors.PathfmError: as `download`.
    """
    final = root / resource.file
    if final.is_file():
        return final
    part = root / f"{resource.file}.part"
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(resource.url, part, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise _refused(resource, error) from error
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise errors.PathfmError(
                    f"{resource.url} cannot be fetched: {_reason(error)} "
                    f"({_size(part):,} bytes are here; the same command goes on).",
                    again,
                ) from error
            time.sleep(pause_s * 2 ** (failures - 1))
    _check(resource, part)
    os.replace(part, final)
    return final


def unpack(archive: Path, root: Path, resource: base.Resource) -> None:
    """Unpack a .zip or .gz inside `root`.

    Raises:
        errors.PathfmError: it is damaged, names a path outside, holds a link, or is too large.
    """
    try:
        if archive.suffix == ".zip":
            _unzip(archive, root, resource)
        else:
            _gunzip(archive, root, resource)
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        raise _unsafe(archive, f"it is damaged ({_reason(error)})") from error


def _mirrored(resource: base.Resource, mirror: str) -> base.Resource:
    return dataclasses.replace(resource, url=f"{mirror}/{resource.file}")


def _transfer(url: str, part: Path, progress: Report) -> None:
    """One connection; raises OSError or HTTPException where it ends early."""
    start = _size(part)
    headers = {"User-Agent": "pathfm"}
    # `fetch` takes http and https only, and redirects cannot lead to files.
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
            total, append = _expected(answer, start)
            _need_space(part.parent, (total or 0) - (start if append else 0))
            _save(answer, part, append, total, progress)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_BEYOND_END:
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":
            part.unlink()
            raise ConnectionError("the file is another one now") from error


def _expected(answer: Any, start: int) -> tuple[int | None, bool]:
    """Size of the whole file, and whether the answer goes on where `start` is."""
    if answer.status == 206:
        found = _TOTAL.match(answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start:
            raise OSError("the server answers with another range")
        return int(found[2]), True
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None, False


def _save(answer: Any, part: Path, append: bool, total: int | None, progress: Report) -> None:
    with part.open("ab" if append else "wb") as file:
        while block := answer.read(BLOCK):
            file.write(block)
            if file.tell() > MAX_DOWNLOAD_BYTES:
                raise errors.PathfmError(f"{part} has {file.tell():,} bytes and does not end.")
            progress(file.tell(), total or file.tell())
        done = file.tell()
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _need_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise errors.PathfmError(
            f"{folder} has {free / 1e9:.1f} GB free; {wanted / 1e9:.1f} GB are still to come.",
            "another --data",
        )


def _check(resource: base.Resource, part: Path) -> None:
    if not resource.md5:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != resource.md5:
        part.unlink()
        raise errors.PathfmError(
            f"{resource.url} has the checksum {found}, not {resource.md5}; it was thrown away.",
            "run the same command again; if it stays so, the published file has changed",
        )


def _unzip(archive: Path, root: Path, resource: base.Resource) -> None:
    with zipfile.ZipFile(archive) as opened:
        entries = [e for e in opened.infolist() if e.filename.startswith(resource.keep)]
        entries = [entry for entry in entries if not entry.is_dir()]
        for entry in entries:
            _refuse_unsafe(archive, entry)
        total = sum(entry.file_size for entry in entries)
        if total > resource.max_unpacked_bytes:
            raise _unsafe(archive, f"it unpacks to {total:,} bytes")
        if not entries:
            raise _unsafe(archive, f"it holds no {resource.keep or 'files'}")
        _need_space(root, total)
        for entry in entries:
            target = root / entry.filename
            if not target.is_file() or target.stat().st_size != entry.file_size:
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as data:
                    _copy(data, target, entry.file_size, archive)


def _refuse_unsafe(archive: Path, entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in path.parts[0]:
        raise _unsafe(archive, f"it names {entry.filename!r}, outside its folder")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind and not stat.S_ISREG(kind):
        raise _unsafe(archive, f"{entry.filename!r} is a link or no plain file")


def _gunzip(archive: Path, root: Path, resource: base.Resource) -> None:
    target = root / resource.makes
    with gzip.open(archive) as data:
        _copy(data, target, resource.max_unpacked_bytes, archive, resource.unpacked_md5)


def _copy(data: Any, target: Path, limit: int, archive: Path, md5: str = "") -> None:
    """Write at most `limit` bytes to a file that appears whole; many files, so no fsync of each."""
    temporary = target.with_name(f"{target.name}.tmp")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with temporary.open("wb") as file:
            while block := data.read(BLOCK):
                if file.tell() + len(block) > limit:
                    raise _unsafe(archive, f"{target.name} unpacks to more than {limit:,} bytes")
                file.write(block)
                if md5:
                    digest.update(block)
        if md5 and digest.hexdigest() != md5:
            raise _unsafe(archive, f"it unpacks to the checksum {digest.hexdigest()}, not {md5}")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _unsafe(archive: Path, why: str) -> errors.PathfmError:
    return errors.PathfmError(
        f"{archive} is not unpacked: {why}.", f"delete it and run the command again: rm {archive}"
    )


def _refused(resource: base.Resource, error: urllib.error.HTTPError) -> errors.PathfmError:
    return errors.PathfmError(
        f"{resource.url} answers {error.code} {error.reason}.",
        "look whether the record has moved; --mirror URL names another place with the same files",
    )


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    return (str(inner).splitlines() or [type(error).__name__])[0].rstrip(".")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
