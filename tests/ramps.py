"""Images whose pixels encode their position; see `make_pyramid` in conftest.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

MakePyramid = Callable[..., Path]


def centres(size: tuple[int, int], factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Level-0 x and y of the pixel centres of a level."""
    width, height = size[0] // factor, size[1] // factor
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return x * factor, y * factor


def ramp(size: tuple[int, int], factor: int) -> np.ndarray:
    """Red is 255 x / width, green is 255 y / height: (height, width, 3) uint8."""
    x, y = centres(size, factor)
    planes = (x * 255 / size[0], y * 255 / size[1], np.full_like(x, 77))
    return np.rint(np.stack(planes, -1)).astype(np.uint8)


WAVE_PX0 = 64


def wave(size: tuple[int, int], factor: int) -> np.ndarray:
    """Red is a sine of x, green of y, with a period of 64 level-0 pixels."""
    x, y = centres(size, factor)
    planes = [127.5 + 120 * np.sin(2 * np.pi * at / WAVE_PX0) for at in (x, y)]
    return np.rint(np.stack([*planes, np.full_like(x, 77)], -1)).astype(np.uint8)


def shift_px0(values: np.ndarray, expected_px0: np.ndarray) -> float:
    """How far a sampled wave lies to the left of where it should be, level-0 pixels."""
    phase = 2 * np.pi * expected_px0 / WAVE_PX0
    terms = np.stack([np.sin(phase), np.cos(phase), np.ones_like(phase)], -1)
    sine, cosine, _ = np.linalg.lstsq(terms, values, rcond=None)[0]
    return float(np.arctan2(cosine, sine) * WAVE_PX0 / (2 * np.pi))


def noise(size: tuple[int, int], factor: int) -> np.ndarray:
    """Grey values without any relation to their neighbours."""
    shape = (size[1] // factor, size[0] // factor, 3)
    return np.random.default_rng(factor).integers(0, 256, shape, np.uint8)
