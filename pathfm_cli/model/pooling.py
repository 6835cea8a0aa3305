"""Which tokens of an encoder are its embedding, where that is not its own output.

Legend: B = batch, N = tokens with the prefix, T = patch tokens, D = width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pathfm_cli import errors

CLASS, CLASS_AND_MEAN, PATCH = "cls", "cls+mean", "patch"


class Tokens(nn.Module):
    """All tokens after the last norm as they are, (B, N, D): their first is the class token.

    Args:
        encoder: a vision transformer of timm.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """The encoder's own."""
        encoder: Any = self.encoder
        tokens_BND: torch.Tensor = encoder.forward_features(pixels_B3HW)
        return tokens_BND

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Encode a batch."""
        return self.forward_features(pixels_B3HW)


class ClassAndMean(Tokens):
    """The class token beside the mean of the patch tokens: (B, 2 D).

    Args:
        encoder: a vision transformer of timm.
        prefix_tokens: class and register tokens; they take no part in the mean.
    """

    def __init__(self, encoder: nn.Module, prefix_tokens: int) -> None:
        super().__init__(encoder)
        self.prefix_tokens = prefix_tokens

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Embed a batch."""
        tokens_BND = self.forward_features(pixels_B3HW)
        mean_BD = tokens_BND[:, self.prefix_tokens :].mean(dim=1)
        return torch.cat([tokens_BND[:, 0], mean_BD], dim=1)


class PatchTokens(Tokens):
    """The patch tokens, row by row of their grid: (B, T, D).

    Args:
        encoder: a vision transformer of timm.
        prefix_tokens: class and register tokens, which are left out.
    """

    def __init__(self, encoder: nn.Module, prefix_tokens: int) -> None:
        super().__init__(encoder)
        self.prefix_tokens = prefix_tokens

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Encode a batch."""
        return self.forward_features(pixels_B3HW)[:, self.prefix_tokens :]


def by_rule(encoder: nn.Module, rule: str, own: str, prefix_tokens: int) -> nn.Module:
    """An encoder whose output follows a rule.

    Args:
        encoder: what gives all tokens by `forward_features`; not asked where its output is meant.
        rule: `cls`, `cls+mean`, `patch`, or `own`.
        own: what the encoder answers by itself, if it is not `cls+mean`.
        prefix_tokens: class and register tokens.
    """
    if rule == CLASS_AND_MEAN:
        return ClassAndMean(encoder, prefix_tokens)
    if rule == PATCH:
        return PatchTokens(encoder, prefix_tokens)
    return encoder if rule == own else Tokens(encoder)


def check(encoder: nn.Module, rule: str, name: str, prefix_tokens: int, side_px: int) -> int:
    """See that an encoder has what a rule that was asked for needs, by one black image.

    Args:
        encoder: see `by_rule`, on the CPU.
        rule: `cls`, `cls+mean` or `patch`.
        name: of the encoder, for messages.
        prefix_tokens: class and register tokens.
        side_px: of its input.

    Returns:
        T, patch tokens of an image.

    Raises:
        errors.UsageError: it gives no tokens, no patch tokens beside them, or none of the class.
    """
    forward = getattr(encoder, "forward_features", None)
    with torch.inference_mode():
        found = forward(torch.zeros((1, 3, side_px, side_px))) if forward else None
    patches = found.shape[1] - prefix_tokens if found is not None and found.ndim == 3 else 0
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise errors.UsageError(
            f"{name} has no square grid of patch tokens: --embedding {rule} is for vision "
            "transformers.",
            "leave --embedding out",
        )
    if rule != PATCH and getattr(encoder, "cls_token", None) is None:
        raise errors.UsageError(f"{name} has no class token.", "leave --embedding out")
    return int(patches)
