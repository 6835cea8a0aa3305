"""Colour changes of a batch, each image its own strength, equal to torchvision's float operations.

All images are RGB in 0..1, float32, (N, 3, H, W), and every result is clamped to 0..1.
Source: torchvision `transforms.v2.functional`: `adjust_brightness`, `adjust_contrast`,
`adjust_saturation`, `adjust_hue`, `rgb_to_grayscale`, `solarize`; for `hed` Ruifrok and Johnston
2001 (the stains) and Tellez et al. 2018 (their change).
"""

from __future__ import annotations

import torch

_LUMA = (0.2989, 0.587, 0.114)
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density per channel of haematoxylin, eosin and DAB (Ruifrok and Johnston)."""
_VECTORS_33 = torch.nn.functional.normalize(torch.tensor(_STAINS, dtype=torch.float64), dim=1)
_UNMIXING_33 = torch.linalg.inv(_VECTORS_33)
_DARKEST = 1 / 255
"""Light that is taken for none: the optical density stays finite."""


def brightness(images: torch.Tensor, factor_N: torch.Tensor) -> torch.Tensor:
    """Multiply by `factor_N`."""
    return (images * _wide(factor_N)).clamp(0, 1)


def contrast(images: torch.Tensor, factor_N: torch.Tensor) -> torch.Tensor:
    """Move away from the image's mean grey value by `factor_N`."""
    mean = luma(images).mean(dim=(-3, -2, -1), keepdim=True)
    return _blend(images, mean, factor_N)


def saturation(images: torch.Tensor, factor_N: torch.Tensor) -> torch.Tensor:
    """Move away from each pixel's grey value by `factor_N`."""
    return _blend(images, luma(images), factor_N)


def hue(images: torch.Tensor, turns_N: torch.Tensor) -> torch.Tensor:
    """Turn the colour wheel by `turns_N`, from -0.5 to 0.5."""
    hue_, saturation_, value = _to_hsv(images)
    return _to_rgb((hue_ + turns_N[:, None, None]) % 1.0, saturation_, value)


def grey(images: torch.Tensor) -> torch.Tensor:
    """Replace colour by its grey value, three channels."""
    return luma(images).expand_as(images)


def solarise(images: torch.Tensor) -> torch.Tensor:
    """Invert what is at least one half (128 of 255, as Pillow does)."""
    return torch.where(images >= 128 / 255, 1 - images, images)


def hed(images: torch.Tensor, factor_N3: torch.Tensor, shift_N3: torch.Tensor) -> torch.Tensor:
    """Change the amounts of haematoxylin, eosin and DAB: times a factor, plus a shift.

    Optical density is -ln of the light that comes through; the stains' are unit vectors.
    """
    vectors_33, unmixing_33 = _VECTORS_33.to(images), _UNMIXING_33.to(images)
    density = -images.clamp(min=_DARKEST).log()
    amounts = torch.einsum("nchw,cs->nshw", density, unmixing_33)
    amounts = amounts * factor_N3[:, :, None, None] + shift_N3[:, :, None, None]
    return torch.exp(-torch.einsum("nshw,sc->nchw", amounts, vectors_33)).clamp(0, 1)


def luma(images: torch.Tensor) -> torch.Tensor:
    """Grey value, (N, 1, H, W)."""
    weights = images.new_tensor(_LUMA)[:, None, None]
    return (images * weights).sum(dim=-3, keepdim=True)


def _blend(images: torch.Tensor, base: torch.Tensor, factor_N: torch.Tensor) -> torch.Tensor:
    factor = _wide(factor_N)
    return (images * factor + base * (1 - factor)).clamp(0, 1)


def _wide(factor_N: torch.Tensor) -> torch.Tensor:
    return factor_N[:, None, None, None]


def _to_hsv(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    red, green, blue = images.unbind(dim=-3)
    value, low = images.amax(dim=-3), images.amin(dim=-3)
    chroma = value - low
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    # The sector follows the largest channel, red first and green second where they tie.
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation_ = chroma / torch.where(chroma == 0, torch.ones_like(value), value)
    return (sixths / 6 + 1) % 1.0, saturation_, value


def _to_rgb(hue_: torch.Tensor, saturation_: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + hue_ * 6) % 6
        channels.append(value - value * saturation_ * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=-3)
