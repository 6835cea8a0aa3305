"""Puts heads, mask token and moments of an earlier training into new networks, or says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import foreign
from pathfm_cli.pretrain import shard

_SECOND_HEAD = "last_layer2."
"""Of iBOT's checkpoints, inside the first one."""
_WORDS = {"head": "projection head", "ibot_head": "head of patch tokens"}


def head(
    network: nn.Module, which: str, found: Mapping[str, torch.Tensor] | None, init: str
) -> list[str]:
    """Load a projection head; return the names of a second one inside it, which is left.

    Args:
        network: a `networks.Network`.
        which: `head` or `ibot_head`.
        found: its tensors; None: there are none.
        init: where they are from, for messages.

    Raises:
        errors.InputError: there are none.
        errors.UsageError: they do not fit.
    """
    if found is None:
        raise lacks(init, _WORDS[which], "--set start.heads=fresh")
    module = network.get_submodule(which)
    second = [name for name in found if name.startswith(_SECOND_HEAD)]
    state = {name: tensor for name, tensor in found.items() if name not in second}
    try:
        foreign.check_fit(state, module.state_dict(), f"The head of {init} does not fit the recipe")
    except errors.InputError as error:
        rows = state.get("last_layer.weight_v")
        hint = "--set start.heads=fresh"
        if rows is not None and len(rows) != module.get_parameter("last_layer.weight_v").shape[0]:
            hint = f"--set {which}.prototypes={len(rows)}, or {hint}"
        raise errors.UsageError(str(error), hint) from error
    module.load_state_dict(state)
    return second


def mask_token(networks: Sequence[nn.Module], token: torch.Tensor | None, init: str) -> bool:
    """Load the mask token, if there is one on both sides; return whether there was.

    Where the source has none, as timm's encoders, it stays zero.

    Raises:
        errors.UsageError: it is of another width.
    """
    targets = [p for one in networks for n, p in one.named_parameters() if n == "mask_token"]
    if token is None or not targets:
        return False
    if token.numel() != targets[0].numel():
        raise errors.UsageError(
            f"The mask token of {init} has {token.numel()} values, not {targets[0].numel()}.",
            "--set model.init=scratch, or the model.arch that it was trained with",
        )
    with torch.no_grad():
        for target in targets:
            target.copy_(token.reshape(target.shape))
    return True


def centre(buffer_K: torch.Tensor, found_K: torch.Tensor | None, words: str, init: str) -> None:
    """Load a centre; `words` call it by its name.

    Raises:
        errors.InputError: there is none.
        errors.UsageError: another number of prototypes.
    """
    if found_K is None:
        raise lacks(init, words, "--set start.centre=fresh")
    if found_K.numel() != buffer_K.numel():
        raise errors.UsageError(
            f"The {words} of {init} has {found_K.numel()} prototypes, not {buffer_K.numel()}.",
            "--set start.centre=fresh, or the number of prototypes that it was trained with",
        )
    buffer_K.copy_(found_K.flatten())


def moments(
    found: Mapping[str, torch.Tensor],
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    init: str,
    *,
    heads: bool,
) -> None:
    """Give AdamW the moments of the encoder's parameters, and of the heads' too if wanted.

    Raises:
        errors.UsageError: some are of another shape, as those of resampled positions.
    """
    parameters = dict(student.named_parameters())
    for full, tensor in found.items():
        key, _, name = full.partition(".")
        parameter = parameters.get(name)
        if parameter is not None and (heads or name.startswith(("backbone.", "mask_token"))):
            if tensor.ndim and tensor.shape != parameter.shape:
                raise errors.UsageError(
                    f"The moments of {name} in {init} are {tuple(tensor.shape)}, "
                    f"not {tuple(parameter.shape)}.",
                    "--set start.moments=fresh",
                )
            optimiser.state[parameter][key] = shard.like(parameter, tensor)


def lacks(init: str, part: str, hint: str) -> errors.InputError:
    """The error that `init` has no such part."""
    return errors.InputError(f"{init} holds no {part}.", hint)
