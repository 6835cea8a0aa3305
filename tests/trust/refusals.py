"""What every refusal must look like."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from processes import pathfm

TIMEOUT_S = 60


def left(folder: Path) -> set[str]:
    """Names of everything below a folder."""
    return {
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, folders, names in os.walk(folder)
        for name in (*folders, *names)
    }


def refused(
    folder: Path,
    *arguments: str | Path,
    codes: Collection[int],
    words: str = "",
    stdin: str | None = None,
) -> str:
    """Run pathfm in `folder`; assert that it refuses as documented, and return its stderr.

    That is: one of these exit codes, a sentence that begins with `pathfm`, no traceback, nothing
    on stdout, and not one file more in `folder` than before.
    """
    before = left(folder)
    done = pathfm(*arguments, cwd=folder, stdin=stdin, timeout=TIMEOUT_S)
    told = f"{' '.join(map(str, arguments))}: {done.returncode}\n{done.stderr}"
    assert "Traceback" not in done.stderr, told
    assert done.returncode in codes, told
    assert done.stderr.startswith(("pathfm", "Usage")), told
    assert len(done.stderr) < 4000, told
    assert re.search(words, done.stderr), told
    assert done.stdout == "", told
    assert left(folder) == before, told
    return done.stderr
