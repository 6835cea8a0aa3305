"""Files appear whole or not at all, and only where they can be written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from pathfm_cli import addresses, errors

_TEMPORARY = re.compile(r"\.tmp-(\d+)(?:-\d+)?")
"""What `atomic` adds to a name: process and thread."""


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync and rename it to `path`.

    Leftovers of killed processes are removed. A failure leaves `path` as it was. Threads that
    write one path do not disturb each other; the last one wins.

    Raises:
        errors.Unwritable: nothing can be written there.
    """
    refuse_address(path)
    final = Path(os.path.abspath(path))
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}-{threading.get_native_id()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        temporary.touch()
        mode = temporary.stat().st_mode
    except OSError as error:
        raise errors.Unwritable(path, error.strerror or str(error)) from error
    try:
        yield temporary
        # safetensors makes files that only their owner may read.
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
        _fsync_folder(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_address(path: str | os.PathLike[str]) -> None:
    """Refuse an address as an output: it would become a folder called `s3:`, password and all.

    Raises:
        errors.Unwritable: it is one.
    """
    if addresses.is_address(os.fspath(path)):
        raise errors.Unwritable(path, "it is an address, and results are written to local disks")


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether something is there that is neither file nor folder.

    A named pipe would be waited for, a device be read without an end.
    """
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, which is no pipe and no device.

    Raises:
        OSError: it is, or it cannot be read.
    """
    if is_special(path):
        raise OSError(errno.EINVAL, "no file", os.fspath(path))
    return Path(path).read_bytes()


def check_place(path: str | os.PathLike[str]) -> None:
    """See, without touching anything, that a file can be made at `path`.

    Raises:
        errors.Unwritable: it cannot.
    """
    refuse_address(path)
    folder = Path(os.path.abspath(path)).parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise errors.Unwritable(path, f"{folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise errors.Unwritable(path, f"no permission to write in {folder}")


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, before long work relies on it.

    Raises:
        errors.Unwritable: it cannot be made, or holds no new file.
    """
    refuse_address(path)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.Unwritable(path, error.strerror or str(error)) from error
    check_place(Path(path) / "file")


def _sweep(final: Path) -> None:
    for stale in final.parent.glob(f"{_glob_escape(final.name)}.tmp-*"):
        process = _TEMPORARY.fullmatch(stale.name[len(final.name) :])
        if process and int(process[1]) != os.getpid() and not _alive(int(process[1])):
            stale.unlink(missing_ok=True)


def _glob_escape(name: str) -> str:
    """Quote the characters that `Path.glob` would read as a pattern."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
