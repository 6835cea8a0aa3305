"""Tissue without the colour and strength of its stain: grey optical density, image by image.

Scanner and stain tell slides apart more loudly than tissue does. An encoder that is fed this sees
structure alone. Legend: B images, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pathfm_cli.model import transform

_FLOOR = 1e-3
"""Added to the deviation, so that an image of one colour becomes zeros."""
_DEVIATION = 1 / 3
"""Deviation of the result: almost all of it lies within -1..1, as that of other inputs does."""


def standardise(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Mean optical density of the three channels, of each image its own mean 0 and deviation 1/3.

    d = mean_c -ln((255 x_c + 1) / 256), out = (d - mean(d)) / (std(d) + 0.001) / 3

    Args:
        images_B3HW: RGB in 0..1.

    Returns:
        (B, 3, H, W) float32, three equal channels, so that any encoder takes it.
    """
    density = -torch.log((images_B3HW.float().clamp(0, 1) * 255 + 1) / 256).mean(1, keepdim=True)
    density = density - density.mean((-2, -1), keepdim=True)
    deviation = density.std((-2, -1), keepdim=True) + _FLOOR
    return (density * (_DEVIATION / deviation)).expand(-1, 3, -1, -1)


class OnDensity(nn.Module):
    """An encoder that was trained on `standardise`, for pixels normalised by mean and deviation.

    Args:
        encoder: the encoder; a vision transformer's `forward_features` is kept.
        mean: per channel, what was subtracted from pixels in 0..1.
        std: per channel, what they were divided by.
    """

    def __init__(
        self, encoder: nn.Module, mean: transform.Channels, std: transform.Channels
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean, self.std = mean, std

    def forward_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """What the encoder's own gives: all tokens after the last norm."""
        encoder: Any = self.encoder
        features: torch.Tensor = encoder.forward_features(self._density(pixels_B3HW))
        return features

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """Embed a batch."""
        features: torch.Tensor = self.encoder(self._density(pixels_B3HW))
        return features

    def _density(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        mean_311 = pixels_B3HW.new_tensor(self.mean)[:, None, None]
        std_311 = pixels_B3HW.new_tensor(self.std)[:, None, None]
        return standardise(pixels_B3HW * std_311 + mean_311)
