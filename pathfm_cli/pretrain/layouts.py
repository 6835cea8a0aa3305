"""Where heads, centres and the mask token lie in foreign full checkpoints.

DINO     `teacher`, `student`: `[module.]backbone.*`, `[module.]head.*`; `dino_loss` with `center`
iBOT     the same, with a second head `last_layer2` that is left; `ibot_loss` with `center` and, of
         patch tokens, `center2`
DINOv2   `teacher` with `dino_head.*`, or `model` with `teacher.*`, `student.*`, `dino_loss.center`;
         `ibot_head.*` where it has a head of its own, `mask_token` among the encoder's tensors,
         `ibot_patch_loss.center`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pathfm_cli import errors
from pathfm_cli.model import foreign

State = dict[str, torch.Tensor]

HEAD = re.compile(r"^(?:module\.)*(?:head|dino_head)\.(.+)$")
IBOT_HEAD = re.compile(r"^(?:module\.)*ibot_head\.(.+)$")
MASK_TOKEN = re.compile(r"^(?:module\.)*(?:backbone\.)?(?:mask_token|masked_embed)$")
_HEAD_NAMES = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
    "mlp.weight": "mlp.0.weight",
    "mlp.bias": "mlp.0.bias",
}
"""Newer spellings of weight norm, and the perceptron of one layer, to those of `head.DinoHead`."""
CENTRES = (("dino_loss", "center"), ("ibot_loss", "center"))
PATCH_CENTRES = (("ibot_patch_loss", "center"), ("ibot_loss", "center2"))


def _tables(content: Any) -> Iterator[Mapping[Any, Any]]:
    """The mappings that a checkpoint wraps around its tensors, from the outside in."""
    for _ in range(foreign.MAX_DEPTH):
        if not isinstance(content, Mapping):
            return
        yield content
        content = content.get("model", content.get("state_dict"))


def branch(content: Any, name: str, path: Path) -> Mapping[str, torch.Tensor] | None:
    """All tensors of the teacher, or the student, in a full checkpoint; None: no such part.

    Raises:
        errors.InputError: something else lies there.
    """
    for table in _tables(content):
        inner = table.get(name)
        found = dict(inner) if isinstance(inner, Mapping) else below(table, f"{name}.")
        if found and not foreign.is_state(found):
            raise errors.InputError(
                f"{path} holds no table of named tensors under {name}.",
                "a checkpoint as it was saved",
            )
        if found:
            return found
    return None


def centre(content: Any, places: Sequence[tuple[str, str]]) -> torch.Tensor | None:
    """The centre of class or patch tokens, by `CENTRES` or `PATCH_CENTRES`, float32."""
    for table in _tables(content):
        for name, key in places:
            loss = table.get(name)
            inner = loss if isinstance(loss, Mapping) else {}
            found = inner.get(key, table.get(f"{name}.{key}"))
            if isinstance(found, torch.Tensor):
                return found.float()
    return None


def mask_token(state: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What a student sees in the place of hidden patches."""
    return next((tensor for name, tensor in state.items() if MASK_TOKEN.match(name)), None)


def head(state: Mapping[str, torch.Tensor] | None, which: re.Pattern[str] = HEAD) -> State | None:
    """A projection head of a student or a teacher, under the names of `head.DinoHead`."""
    found: State = {}
    for name, tensor in (state or {}).items():
        if match := which.match(name):
            found[_HEAD_NAMES.get(match[1], match[1])] = tensor
    return found or None


def below(table: Mapping[str, Any], prefix: str) -> State:
    """What has a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in table.items()
        if isinstance(name, str) and name.startswith(prefix)
    }
