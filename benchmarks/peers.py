"""Other readers of slides, each as a function from a place to a patch; for benchmarks.

Every peer opens the slide once and returns (size, size, 3) uint8 RGB. Where a patch shows a larger
extent of level 0, the peer reads all of it and shrinks it by Pillow's `reduce`, the fastest exact
way (peers have no faster one: the slides lack the level that would fit).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Patch = Callable[[int, int, int, int], np.ndarray]
"""(x_px0, y_px0, extent_px0, size_px) to pixels."""


def openslide(path: Path) -> Patch:
    """openslide-python."""
    import openslide

    slide = openslide.OpenSlide(path)

    def patch(x: int, y: int, extent: int, size: int) -> np.ndarray:
        image = slide.read_region((x, y), 0, (extent, extent)).convert("RGB")
        return np.asarray(image if extent == size else image.reduce(extent // size))

    return patch


def tiffslide(path: Path) -> Patch:
    """The package tiffslide."""
    import tiffslide

    slide = tiffslide.TiffSlide(path)

    def patch(x: int, y: int, extent: int, size: int) -> np.ndarray:
        pixels = slide.read_region((x, y), 0, (extent, extent), as_array=True)
        return _shrunk(pixels, extent // size)

    return patch


def cucim(path: Path) -> Patch:
    """The package cucim, on the CPU."""
    import cucim

    slide = cucim.CuImage(str(path))

    def patch(x: int, y: int, extent: int, size: int) -> np.ndarray:
        region = slide.read_region(location=(x, y), size=(extent, extent), level=0)
        return _shrunk(np.asarray(region), extent // size)

    return patch


def wsistream(path: Path) -> Patch:
    """The package wsistream, over its openslide backend."""
    from wsistream import backends
    from wsistream import slide as slides

    slide = slides.SlideHandle(path, backends.OpenSlideBackend())

    def patch(x: int, y: int, extent: int, size: int) -> np.ndarray:
        return _shrunk(slide.read_region(x, y, extent, extent), extent // size)

    return patch


PEERS: dict[str, Callable[[Path], Patch]] = {
    "openslide": openslide,
    "tiffslide": tiffslide,
    "cucim": cucim,
    "wsistream": wsistream,
}


def installed() -> list[str]:
    """Names of the peers that are there."""
    return [name for name in PEERS if importlib.util.find_spec(name)]


def _shrunk(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))
