"""What `--model` and its companions mean, for every verb that runs an encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathfm_cli import errors
from pathfm_cli.cli import output, pipe

if TYPE_CHECKING:
    from pathfm_cli.model import weights

VARIABLE = "PATHFM_MODEL"
"""Environment variable that names the model where nothing else does."""


def bind(
    verb: str,
    arguments: Sequence[str],
    slots: Mapping[str, pipe.Slot],
    model: str | None,
    out: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, Path], str]:
    """Find a verb's inputs and its model: `--model`, a checkpoint on stdin, or `$PATHFM_MODEL`.

    Args:
        verb: for messages.
        arguments: positional arguments.
        slots: the verb's inputs beside the model; with none, stdin is read for a checkpoint alone.
        model: value of `--model`.
        out: what the verb will write.

    Returns:
        Slot name to path, and the model as `weights.load` takes it.

    Raises:
        errors.UsageError: no model was named, or as `pipe.bind`.
        errors.InputError: as `pipe.bind`, or stdin ended without a checkpoint.
    """
    both = {**slots, "model": pipe.Slot(("checkpoint",), required=False)}
    if not slots and not model and not arguments and pipe.has_stdin():
        arguments = ["-"]
    bound = pipe.bind(verb, arguments, both, {"model": model}, out)
    found = bound.pop("model", None)
    spec = model or (str(found) if found else os.environ.get(VARIABLE))
    if not spec and "-" in arguments:
        raise errors.InputError(
            "stdin ended without a checkpoint artifact.", "did the command on the left fail?"
        )
    if not spec:
        raise errors.UsageError(
            f"{verb} needs a model: name it by --model, pipe a checkpoint in, or set ${VARIABLE}.",
            f"pathfm {verb} ... --model RUN_FOLDER, FILE --arch NAME, TIMM_NAME or random/NAME",
        )
    return bound, spec


def channels(flag: str, text: str | None) -> tuple[float, float, float] | None:
    """Read one number for all channels, or three.

    Raises:
        errors.UsageError: neither, or a number that is not above 0 and at most 1.
    """
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(0 < value <= 1 for value in values):
        raise errors.UsageError(
            f"{flag} {text} is not one or three numbers in (0, 1].", f"{flag} 0.5,0.5,0.5"
        )
    return values[0], values[1], values[2]


def load(spec: str, **how: Any) -> weights.Encoder:
    """Load the encoder by `weights.load(spec, **how)` and say on stderr what it is.

    That is: on what it runs, with which input, and what a checkpoint held beside it. Of several
    ranks only the first speaks.

    Raises:
        errors.PathfmError: as `weights.load`.
    """
    from pathfm_cli.model import weights
    from pathfm_cli.pretrain import launch

    encoder = weights.load(spec, **how)
    if not launch.leads():
        return encoder
    mean, std = (",".join(f"{v:.3g}" for v in values) for values in (encoder.mean, encoder.std))
    output.note(
        f"pathfm: {encoder.name} on {encoder.device} in {encoder.precision},"
        f" {encoder.image_size_px} px, mean {mean}, std {std}"
    )
    if encoder.dropped:
        groups: dict[str, int] = {}
        for name in encoder.dropped:
            first = name.partition(".")[0]
            groups[first] = groups.get(first, 0) + 1
        listed = ", ".join(f"{k} ({n})" if n > 1 else k for k, n in groups.items())
        output.note(f"pathfm: the checkpoint also holds, unused: {listed}")
    return encoder


def own_device(name: str) -> str:
    """Among several processes of torchrun, each one's own."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return name
    from pathfm_cli.tasks import ranks

    return ranks.device(name)
