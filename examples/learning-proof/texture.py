"""What needs no training: hand-made descriptions of tissue that an encoder has to beat.

Legend: N images, S side in pixels, F rings of frequency.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RINGS = 16


def texture(images_NSS3: NDArray[np.uint8], *, contrast: bool) -> NDArray[np.float64]:
    """Radial Fourier power of grey optical density, log; (N, F).

    Args:
        images_NSS3: RGB.
        contrast: keep the mean over the rings, which is how strong the stain is.
    """
    density_NSS = -np.log((images_NSS3.astype(np.float64) + 1) / 256).mean(axis=3)
    density_NSS -= density_NSS.mean(axis=(1, 2), keepdims=True)
    side = images_NSS3.shape[1]
    window = np.hanning(side)
    power_NSS = np.abs(np.fft.fft2(density_NSS * window[:, None] * window)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    edges = np.geomspace(1 / side, 0.5, RINGS + 1)
    rings = [
        (frequency >= low) & (frequency < high) for low, high in zip(edges, edges[1:], strict=False)
    ]
    power_NF = np.log(np.stack([power_NSS[:, ring].mean(axis=1) for ring in rings], axis=1))
    return power_NF if contrast else power_NF - power_NF.mean(axis=1, keepdims=True)


def colour(images_NSS3: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean, deviation and the 10, 50 and 90 % quantiles of each channel; (N, 15)."""
    flat_NX3 = images_NSS3.reshape(len(images_NSS3), -1, 3) / 255
    parts = [flat_NX3.mean(axis=1), flat_NX3.std(axis=1)]
    return np.hstack([*parts, *np.quantile(flat_NX3, (0.1, 0.5, 0.9), axis=1)])
