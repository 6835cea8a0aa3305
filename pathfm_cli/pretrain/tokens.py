"""Class and patch tokens of a vision transformer, some of its patches hidden by a mask token.

Source: facebookresearch/dinov2, `models/vision_transformer.py`, `prepare_tokens_with_masks`; timm's
transformers have no mask token. Legend: I images, C channels, S side in pixels, N patch tokens, D
width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from pathfm_cli import errors

_PARTS = ("patch_embed", "_pos_embed", "patch_drop", "norm_pre", "blocks", "norm", "cls_token")


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """Output of the last norm; register tokens are left out."""

    class_ID: torch.Tensor
    patches_IND: torch.Tensor


def check(backbone: nn.Module, arch: str) -> None:
    """See that `tokens` works with an encoder.

    Raises:
        errors.UsageError: it is no plain vision transformer with a class token.
    """
    if any(getattr(backbone, part, None) is None for part in _PARTS):
        raise errors.UsageError(
            f"{arch} has no class and patch tokens to train on.",
            "--set model.arch=vit_small_patch16_224, or another plain vision transformer of timm",
        )


def tokens(
    backbone: nn.Module,
    images_ICSS: torch.Tensor,
    mask_token_D: torch.Tensor | None = None,
    masked_IN: torch.Tensor | None = None,
) -> Tokens:
    """Run an encoder, with `mask_token_D` in the place of the embedding of masked patches.

    Positions are added afterwards, so a masked token knows where it is. Without a mask the class
    token is what the encoder returns.

    Args:
        backbone: one that `check` takes.
        images_ICSS: of any size that the encoder takes.
        mask_token_D: a parameter beside the encoder, so that its weights stay timm's.
        masked_IN: bool, on the device of the images; rows of patches follow each other. Given
            together with `mask_token_D`, or not at all.
    """
    vit: Any = backbone
    x = vit.patch_embed(images_ICSS)
    if masked_IN is not None and mask_token_D is not None:
        hidden = masked_IN.view(*x.shape[:-1], 1)
        x = torch.where(hidden, mask_token_D.to(x.dtype), x)
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(x)))
    x = vit.norm(vit.blocks(x))
    return Tokens(x[:, 0], x[:, vit.num_prefix_tokens :])


def grid(backbone: nn.Module, size_px: int) -> tuple[int, int]:
    """Rows and columns of patch tokens of a square image of `size_px`."""
    embed: Any = backbone.patch_embed
    height_px, width_px = embed.patch_size
    return size_px // height_px, size_px // width_px
