"""How well tissue is found, and how fast patches are placed on it.

Compares the U-Net of the package with `--method otsu` and with the saturation threshold of
CLAM-style tools, (a) on composites with known truth, cut from slides that the U-Net never saw, one
difficulty at a time, and (b) on outlines of those slides that were checked by hand. Then measures
exact overlap, and a cohort of 29,000 slides.

python benchmarks/tissue.py [--quick] [--json] [--weights FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import shapely
from numpy import typing as npt
from scipy import ndimage
from shapely import affinity, geometry

from pathfm_cli import artifacts
from pathfm_cli.data import cohort, draw, index, otsu, outlines, overlap, polygons
from pathfm_cli.model import unet
from pathfm_cli.tissue import compose, pairs, scores

ROOT = Path(__file__).parents[1]
SLIDES = ROOT.parent / "shared" / "data" / "slides"
OUTLINES = ROOT / "tests" / "data" / "outlines"
HELD_OUT = (
    "BS21_stomach_HE_10x_rgbjpeg",
    "BS25_duodenumNET_HE_10x",
    "BS27_duodenum_HE_40x_ycc422",
    "TCGA-CR-7395-01A-01-TS1",
    "crohn_colon_HE_10x",
    "lipoma_colon_HE_nompp",
)
"""Slides whose tissue the shipped weights never saw; `docs/models/tissue-unet.md`."""
OVERRIDES = {"lipoma_colon_HE_nompp": 1.0112, "TCGA-CR-7395-01A-01-TS1": 0.5}
"""Micrometres per pixel of the slides that do not say theirs."""
MPP = 8.0
SEED = 2024
COHORT = 29_000

Mask = npt.NDArray[np.bool_]
Finder = Callable[[npt.NDArray[np.uint8]], Mask]


def saturation_otsu(rgb: npt.NDArray[np.uint8]) -> Mask:
    """Saturation of HSV, 7 x 7 median, Otsu's threshold, 4 x 4 closing: what CLAM's tools do."""
    high, low = rgb.max(axis=2).astype(np.float32), rgb.min(axis=2).astype(np.float32)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1), 0)
    smooth = ndimage.median_filter(saturation, size=7)
    mask = smooth > otsu.otsu_threshold(smooth.ravel(), 1.0)
    return np.asarray(ndimage.binary_closing(np.pad(mask, 4), np.ones((4, 4)))[4:-4, 4:-4])


def finders(weights: str | None) -> dict[str, Finder]:
    """The three methods by name, each from (H, W, 3) uint8 at `MPP` to (H, W) bool."""
    network = unet.load(weights)

    def by_unet(rgb: npt.NDArray[np.uint8]) -> Mask:
        if network.mpp == MPP:
            return network.probability(rgb) > 0.5
        height, width = rgb.shape[:2]
        size = max(1, round(width * MPP / network.mpp)), max(1, round(height * MPP / network.mpp))
        from PIL import Image

        small = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.HAMMING))
        found = Image.fromarray(network.probability(small))
        return np.asarray(found.resize((width, height), Image.Resampling.BILINEAR)) > 0.5

    return {
        "unet": by_unet,
        "otsu": lambda rgb: otsu.foreground(rgb, MPP),
        "saturation": saturation_otsu,
    }


def cleaned(mask: Mask) -> Mask:
    """What `pathfm mask` keeps of a mask: the same small pieces and holes go, whatever the method."""
    tissue = polygons.from_mask(mask, (1.0, 1.0), MPP, polygons.Cleaning())
    return pairs.raster(tissue, (1.0, 1.0), (mask.shape[1], mask.shape[0]))


def score(
    methods: Mapping[str, Finder], images: Sequence[tuple[npt.NDArray[np.uint8], Mask]]
) -> dict[str, scores.Score]:
    """Areas of each method, added over the images."""
    return {
        name: scores.total(scores.compare(cleaned(find(rgb)), mask, MPP) for rgb, mask in images)
        for name, find in methods.items()
    }
