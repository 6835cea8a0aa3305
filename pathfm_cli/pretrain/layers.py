"""Learning rates by depth: layers nearer to the pixels learn slower.

Source: facebookresearch/dinov2, `utils/param_groups.py`: `get_vit_lr_decay_rate` and
`get_params_groups_with_decay`. The paper's Table VII compares 1 and 0.9 for DINOv2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from pathfm_cli import errors
from pathfm_cli.pretrain import recipe

_BLOCK = re.compile(r"^backbone\.blocks\.(\d+)\.")
_FIRST = re.compile(r"^mask_token$|^backbone\.(pos_embed|patch_embed|cls_token|reg_token)\b")
_PATCH = "backbone.patch_embed."


def factors(network: nn.Module, settings: recipe.Optim) -> Mapping[str, float]:
    """Factor of the learning rate of every parameter of a `networks.Network`, by its name.

    With d blocks and the decay r: r^(d + 1) for tokens, position and patch embedding, r^(d - i) for
    block i from 0, 1 for the final norm and the head; the patch embedding's once more by its own.

    Raises:
        errors.UsageError: the encoder has no blocks to tell apart.
    """
    names = [name for name, _ in network.named_parameters()]
    plain = settings.layer_decay == settings.patch_embed_lr == 1
    blocks = [int(match[1]) for name in names if (match := _BLOCK.match(name))]
    if not (plain or blocks):
        raise errors.UsageError(
            "optim.layer_decay and optim.patch_embed_lr are for vision transformers.",
            "--set optim.layer_decay=1.0 --set optim.patch_embed_lr=1.0",
        )
    depth = 1 + max(blocks, default=-1)
    return {name: _factor(name, depth, settings) for name in names}


def _factor(name: str, depth: int, settings: recipe.Optim) -> float:
    block = _BLOCK.match(name)
    steps = depth - int(block[1]) if block else depth + 1 if _FIRST.match(name) else 0
    own = settings.patch_embed_lr if name.startswith(_PATCH) else 1.0
    return own * settings.layer_decay**steps
