"""Foreign checkpoints of vision transformers to timm's parameter names.

Layouts: facebookresearch's DINO (`teacher` and `student`; keys `backbone.`, `module.`), DINOv2
(`teacher`, or a `model` with `teacher.backbone.`; chunked blocks, registers, SwiGLU names), iBOT,
timm, and bare state dicts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from pathfm_cli import errors

State = dict[str, torch.Tensor]

MAX_DEPTH = 4
"""Mappings that may lie around a table of tensors; a file may hold one that contains itself."""

_TABLES = ("teacher", "model", "state_dict")
_TEACHER = "teacher.backbone."
_WRAPPERS = ("module.", "backbone.")
_NOT_ENCODER = re.compile(r"^(head|dino_head|ibot_head)\.|^(mask_token|masked_embed)$")
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+\.)")
_RENAMED = (("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))


def select(checkpoint: Any, name: str) -> tuple[State, list[str]]:
    """Find the encoder's tensors in a loaded checkpoint, the EMA teacher before anything else.

    Args:
        checkpoint: what the file holds: nested mappings and tensors.
        name: of the file, for messages.

    Returns:
        The tensors by name, and what lies beside them in the file and was left there.

    Raises:
        errors.InputError: there is no mapping of names to tensors in it.
    """
    chosen, beside = checkpoint, []
    for _ in range(MAX_DEPTH):
        if not isinstance(chosen, Mapping):
            break
        key = next((k for k in _TABLES if isinstance(chosen.get(k), Mapping)), None)
        if key is None:
            break
        beside += [str(other) for other in chosen if other != key]
        chosen = chosen[key]
    if not isinstance(chosen, Mapping) or not is_state(chosen):
        found = ", ".join(map(str, list(chosen)[:5])) if isinstance(chosen, Mapping) else ""
        raise errors.InputError(
            f"{name} holds no table of named tensors{f' but {found}' if found else ''}.",
            "expected a state dict, or one under teacher, model or state_dict",
        )
    teacher = {k.removeprefix(_TEACHER): v for k, v in chosen.items() if k.startswith(_TEACHER)}
    if teacher:
        return teacher, beside + [k for k in chosen if not k.startswith(_TEACHER)]
    return dict(chosen), beside


def convert(
    state: Mapping[str, torch.Tensor], *, class_in_pos_embed: bool
) -> tuple[State, list[str]]:
    """Rename to timm's names and set aside what is no part of the encoder.

    Args:
        state: tensors by name, as `select` returns them.
        class_in_pos_embed: whether the target's position embedding has a place for the class
            token; where it has none, the checkpoint's is added to the token itself.

    Returns:
        The encoder's tensors and the names that were dropped, as the checkpoint spells them.
    """
    kept: State = {}
    dropped = []
    for name, tensor in state.items():
        bare = _bare(name)
        if _NOT_ENCODER.match(bare):
            dropped.append(name)
        else:
            kept[bare] = tensor
    if not class_in_pos_embed:
        _move_class_position(kept)
    return kept, dropped


def resample_positions(
    positions_1ND: torch.Tensor, grid: tuple[int, int], prefix_tokens: int
) -> torch.Tensor:
    """Resample a position embedding to another grid of patches: bicubic with antialias, as timm.

    Args:
        positions_1ND: (1, prefix + n * n, D).
        grid: rows and columns of the target.
        prefix_tokens: places before the patches; they are kept.

    Returns:
        (1, prefix + rows * columns, D). What is no square grid comes back unchanged.
    """
    if positions_1ND.ndim != 3:
        return positions_1ND
    prefix, patches = positions_1ND[:, :prefix_tokens], positions_1ND[:, prefix_tokens:]
    side = int(patches.shape[1] ** 0.5)
    if (side, side) == grid or side * side != patches.shape[1]:
        return positions_1ND
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = functional.interpolate(square, grid, mode="bicubic", antialias=True)
    flat = resized.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)
    return torch.cat([prefix.float(), flat], dim=1)


def check_fit(
    state: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], what: str
) -> None:
    """Refuse a checkpoint that is not exactly the encoder.

    Raises:
        errors.InputError: a tensor is missing, left over, or of another shape; three are named.
    """
    problems = [f"{k} is missing" for k in target if k not in state]
    problems += [f"{k} is left over" for k in state if k not in target]
    problems += [
        f"{k} is {tuple(state[k].shape)}, not {tuple(v.shape)}"
        for k, v in target.items()
        if k in state and state[k].shape != v.shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise errors.InputError(
            f"{what}: {', '.join(problems[:3])}{more}.",
            "name the architecture the checkpoint was trained with: --arch TIMM_NAME",
        )


def is_state(table: Mapping[Any, Any]) -> bool:
    """Whether `table` maps names to plain tensors."""
    return bool(table) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) and v.layout == torch.strided
        for k, v in table.items()
    )


def _move_class_position(state: State) -> None:
    """Add the class token's place in the position embedding to the token, and cut it off."""
    position, token = state.get("pos_embed"), state.get("cls_token")
    if (
        position is None
        or token is None
        or position.ndim != 3
        or not _is_square(len(position[0]) - 1)
    ):
        return
    if token.shape == position[:, :1].shape:
        state["cls_token"] = token + position[:, :1]
        state["pos_embed"] = position[:, 1:]


def _bare(name: str) -> str:
    while prefix := next((w for w in _WRAPPERS if name.startswith(w)), None):
        name = name.removeprefix(prefix)
    name = _CHUNKED_BLOCK.sub(r"blocks.\1", name)
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return "reg_token" if name == "register_tokens" else name


def _is_square(number: int) -> bool:
    return number > 0 and int(number**0.5) ** 2 == number
