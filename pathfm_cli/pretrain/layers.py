"""Learning rates by layer: how far each parameter of a vision transformer is from the output.

Source: facebookresearch/dinov2, `utils/param_groups.py`, with timm's names of parameters.
"""

from __future__ import annotations

import re

_BACKBONE = "backbone."
_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")
_INPUT = ("pos_embed", "patch_embed", "mask_token", "cls_token", "reg_token")


def factor(name: str, depth: int, layer_decay: float, patch_embed_lr: float) -> float:
    """What multiplies the learning rate of one parameter of a student.

    layer_decay^(depth + 1 - layer), where tokens and embeddings are layer 0, block i is layer
    i + 1, and the last norm and the heads are layer depth + 1.

    Args:
        name: such as `backbone.blocks.3.mlp.fc1.weight`; without `backbone.` it is of a head, but
            for `mask_token`.
        depth: blocks of the encoder.
        layer_decay: 1 is none.
        patch_embed_lr: multiplies the patch embedding's once more.
    """
    own = name.removeprefix(_BACKBONE)
    block = _BLOCK.match(name)
    layer = depth + 1
    if block:
        layer = int(block[1]) + 1
    elif own.startswith(_INPUT):
        layer = 0
    rate = layer_decay ** (depth + 1 - layer)
    return rate * patch_embed_lr if own.startswith("patch_embed.") else rate
