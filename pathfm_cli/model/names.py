"""Names of encoders: whether one can be meant, before anything is asked for."""

from __future__ import annotations

from pathfm_cli import errors
from pathfm_cli.model import hub, vit, zoo

FRESH = "random/"
"""Before a timm name: random weights."""


def check(name: str) -> None:
    """See that `name` can be one of weights that others have published; nothing is asked for.

    Raises:
        errors.UsageError: it is neither the zoo's, nor timm's, nor a hub repository's.
    """
    hub.check_name(name)
    if zoo.find(name):
        return
    if not vit.is_known(name) and (close := zoo.suggestion(name)):
        raise errors.UsageError(f"There is no model {name!r}.", f"did you mean {close}?")
    vit.check_known(name.removeprefix(FRESH))


def refuse_arch(arch: str | None, spec: str) -> None:
    """Refuse `--arch` beside what states its own architecture.

    Raises:
        errors.UsageError: there is one.
    """
    if arch is not None:
        raise errors.UsageError(
            f"--arch {arch} is for checkpoint files; {spec} says itself what it is.", "leave it out"
        )
