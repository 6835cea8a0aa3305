"""The embedding rule that is more than an encoder's own output.

Legend: B = batch, N = tokens with the prefix, D = width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CLASS_AND_MEAN = "cls+mean"


class ClassAndMean(nn.Module):
    """The class token beside the mean of the patch tokens, after the last norm: (B, 2 D).

    Args:
        encoder: a vision transformer of timm.
        prefix_tokens: class and register tokens; they take no part in the mean.
    """

    def __init__(self, encoder: nn.Module, prefix_tokens: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.prefix_tokens = prefix_tokens

    def forward_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """All tokens after the last norm, (B, N, D)."""
        encoder: Any = self.encoder
        tokens_BND: torch.Tensor = encoder.forward_features(pixels_B3HW)
        return tokens_BND

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Embed a batch."""
        tokens_BND = self.forward_features(pixels_B3HW)
        mean_BD = tokens_BND[:, self.prefix_tokens :].mean(dim=1)
        return torch.cat([tokens_BND[:, 0], mean_BD], dim=1)
