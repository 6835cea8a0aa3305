"""Every error pathfm raises on purpose: one sentence, a hint to paste, an exit code.

The library raises; only `cli/app.py` prints. Exit codes: 0 done, 1 failed, 2 usage, config or
output clash, 3 input missing, wrong kind or empty pipe, 4 done but some rows failed, 5 a gate
failed, 75 stopped by a signal with a checkpoint written, 130 Ctrl-C, 141 reader gone, 143 SIGTERM.
"""

from __future__ import annotations

import os

PARTIAL = 4
"""Exit code of a verb that finished while some slides or images failed."""
RESUMABLE = 75
"""Exit code of a verb stopped by a signal after it wrote a checkpoint."""


class PathfmError(Exception):
    """A known failure.

    Args:
        message: one sentence that names the thing that is wrong.
        hint: what to do next, best a command to paste; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(PathfmError):
    """The command line, a recipe or a setting is wrong."""

    exit_code = 2


class OutputClash(PathfmError):
    """The output exists and was made with other inputs or settings."""

    exit_code = 2


class Unwritable(PathfmError):
    """Nothing can be written where the output should go.

    Args:
        path: the output.
        why: the reason, as the end of a sentence.
    """

    exit_code = 2

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        super().__init__(f"{path} cannot be written: {why}.", "another -o")


class InputError(PathfmError):
    """An input artifact is missing, unreadable, of the wrong kind, or the pipe was empty."""

    exit_code = 3


class TooManyFailures(PathfmError):
    """More rows failed than `--max-failed` allows."""

    exit_code = 1


class GateFailed(PathfmError):
    """A threshold such as `odcorr --max` was not met."""

    exit_code = 5


class Interrupted(PathfmError):
    """A signal stopped the run after a checkpoint was written; the same command continues it."""

    exit_code = RESUMABLE


class MissingExtra(PathfmError):
    """An optional package is needed.

    Args:
        what: what needs it, as the start of a sentence ("The loss curve").
        package: the module that is absent.
        extra: the extra of pathfm that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package {package}.", f"pip install 'pathfm[{extra}]'")


class SlideError(PathfmError):
    """One slide cannot be used; becomes a row with `error`, never the end of a run."""


class MissingMpp(SlideError):
    """No trustworthy micrometres per pixel were found in the slide's metadata."""

    def __init__(self, slide: str, detail: str) -> None:
        super().__init__(
            f"{slide}: no trustworthy mpp ({detail})",
            "name it: pathfm index ... --mpp-override SLIDE=0.25",
        )


def first_line(error: Exception) -> str:
    """What another library says, to be put into a sentence: its first line, 200 letters at most."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
