"""Checkpoints of the transformers library (ViT, DINOv2, with registers) to timm's names.

Phikon, Phikon-v2 and Midnight are published so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]

_WRAPPER = re.compile(r"^(?:vit|dinov2|dinov2_with_registers|model)\.")
_BLOCK = re.compile(r"^encoder\.layer\.(\d+)\.(.+)$")
_PART = re.compile(r"^attention\.attention\.(query|key|value)\.(weight|bias)$")
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_INNER = (
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("mlp.weights_in.", "mlp.fc1."),
    ("mlp.weights_out.", "mlp.fc2."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
_NOT_ENCODER = ("embeddings.mask_token", "pooler.", "classifier.")


def recognise(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a checkpoint has the names of the transformers library."""
    return any(_WRAPPER.sub("", name) == "embeddings.cls_token" for name in state)


def convert(state: Mapping[str, torch.Tensor]) -> tuple[State, list[str]]:
    """Rename to timm's names; query, key and value become one tensor.

    Args:
        state: tensors by name.

    Returns:
        The tensors under timm's names (an unknown one keeps its own, so that the strict check
        names it), and the names that are no part of the encoder.
    """
    kept: State = {}
    dropped = []
    for name, tensor in state.items():
        bare = _WRAPPER.sub("", name)
        if bare.startswith(_NOT_ENCODER):
            dropped.append(name)
        elif not (block := _BLOCK.match(bare)):
            kept[_TOP.get(bare, bare)] = tensor
        elif part := _PART.match(block[2]):
            if part[1] == "query":
                names = [name.replace(".query.", f".{which}.") for which in ("query", "key")]
                names.append(name.replace(".query.", ".value."))
                joined = torch.cat([state[key] for key in names if key in state])
                kept[f"blocks.{block[1]}.attn.qkv.{part[2]}"] = joined
        else:
            kept[f"blocks.{block[1]}.{_inner(block[2])}"] = tensor
    return kept, dropped


def _inner(name: str) -> str:
    for old, new in _INNER:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
