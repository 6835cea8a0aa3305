"""Images whose pixels encode their position; see `make_pyramid` in conftest.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

MakePyramid = Callable[..., Path]


def ramp(size: tuple[int, int], factor: int) -> np.ndarray:
    """The pixels of one level, (height, width, 3) uint8."""
    width, height = size
    x = (np.arange(width // factor) + 0.5) * factor * 255 / width
    y = (np.arange(height // factor) + 0.5) * factor * 255 / height
    pixels = np.zeros((height // factor, width // factor, 3))
    pixels[..., 0] = x
    pixels[..., 1] = y[:, None]
    pixels[..., 2] = 77
    return np.rint(pixels).astype(np.uint8)
