"""Stains as optical density: taken apart, jittered, and put together as another stain.

Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", Anal.
Quant. Cytol. Histol. 23, 2001: the optical density of a pixel is a sum of stain vectors.
"""

from __future__ import annotations

import numpy as np
from numpy import typing as npt

Density = npt.NDArray[np.float32]
"""(H, W, 3) float32, -log10(I / glass)."""

HAEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)
RESIDUAL = (0.268, 0.570, 0.776)
DAB = (0.268, 0.570, 0.776)
"""Unit vectors of Ruifrok and Johnston; the third stain of H&E is what the two do not explain."""
PAS = (0.175, 0.972, 0.155)
"""Periodic acid-Schiff: magenta (Macenko-style estimates lie around this direction)."""

_TINY = 1.0 / 255


def density(rgb: npt.NDArray[np.uint8], glass: npt.NDArray[np.float32]) -> Density:
    """Optical density against a colour of glass; below 0 where brighter than the glass."""
    ratio = np.maximum(rgb.astype(np.float32), 1.0) / glass
    return -np.log10(np.maximum(ratio, _TINY))


def light(od: Density, glass: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The inverse of `density`: (H, W, 3) float32 intensities, not clipped."""
    return glass * np.power(np.float32(10), -od)


def jitter(od: Density, random: np.random.Generator, strength: float) -> Density:
    """Scale each stain of H&E by its own factor, and turn its colour a little.

    Tellez et al., IEEE Trans. Med. Imaging 37, 2018 (the paper's reference 4).

    Args:
        od: (H, W, 3).
        random: where the numbers come from.
        strength: 0.2 scales by 0.8 to 1.2.
    """
    basis = _basis(HAEMATOXYLIN, EOSIN, RESIDUAL)
    factors = random.uniform(1 - strength, 1 + strength, 3)
    turned = basis + random.normal(0, 0.06 * strength, (3, 3))
    return _mapped(od, np.asarray(np.linalg.inv(basis) @ np.diag(factors) @ turned))


def as_ihc(od: Density, random: np.random.Generator) -> Density:
    """H&E as immunohistochemistry: haematoxylin stays pale, brown DAB where eosin was strong."""
    nuclei, pink = _concentrations(od)
    cut = random.uniform(0.05, 0.6) * float(np.percentile(pink, 98) + 1e-6)
    brown = np.maximum(pink - cut, 0) * random.uniform(0.0, 2.5)
    faint = random.uniform(0.5, 1.1)
    haze = pink * random.uniform(0.12, 0.45)
    return _sum((nuclei * faint + haze, HAEMATOXYLIN), (brown, DAB))


def as_pas(od: Density, random: np.random.Generator) -> Density:
    """H&E as periodic acid-Schiff: magenta for eosin, a pale counterstain of nuclei."""
    nuclei, pink = _concentrations(od)
    return _sum(
        (nuclei * random.uniform(0.4, 0.9), HAEMATOXYLIN), (pink * random.uniform(0.6, 1.4), PAS)
    )


def _concentrations(od: Density) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    amounts = _mapped(od, np.asarray(np.linalg.inv(_basis(HAEMATOXYLIN, EOSIN, RESIDUAL))))
    amounts = np.maximum(amounts, 0)
    return amounts[..., 0], amounts[..., 1]


def _basis(*vectors: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    rows = np.asarray(vectors)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _mapped(od: Density, matrix: npt.NDArray[np.floating]) -> Density:
    return od @ matrix.astype(np.float32)


def _sum(*parts: tuple[npt.NDArray[np.float32], tuple[float, float, float]]) -> Density:
    total = sum(amount[..., None] * _basis(vector)[0] for amount, vector in parts)
    return np.asarray(total, dtype=np.float32)
