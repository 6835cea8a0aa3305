"""What lies on glass beside tissue: pens, dust, bubbles, coverslips, scan borders, folds, JPEG.

Each function takes a float32 canvas (S, S, 3) of intensities 0 to 255, changes it in place or
returns a new one, and says nothing about truth unless it returns a mask. Sizes are in um and become
pixels by `mpp`.
"""

from __future__ import annotations

import io

import numpy as np
from numpy import typing as npt
from PIL import Image
from scipy import special

from pathfm_cli.tissue import fields, stains

Canvas = npt.NDArray[np.float32]

PENS = (
    (35, 60, 160),
    (20, 30, 90),
    (20, 130, 70),
    (60, 160, 60),
    (190, 35, 45),
    (35, 35, 40),
    (15, 15, 15),
    (40, 120, 170),
    (225, 130, 40),
)
"""Colours of markers (RGB); no violet and no magenta, which are the colours of stained tissue."""


def pen(canvas: Canvas, random: np.random.Generator, mpp: float) -> fields.Mask:
    """Draw one marker stroke; returns where it hides what is below (cover above 0.35)."""
    size = canvas.shape[0]
    width = np.exp(random.uniform(np.log(120), np.log(1000))) / mpp
    cover = fields.stroke(random, size, width)
    if random.random() < 0.15:
        cover = np.where(fields.blob(random, size, random.uniform(300, 1500) / mpp, 0.3) > 0, 1, 0)
        cover = cover.astype(np.float32)
    cover = fields.blur(cover, random.uniform(0.4, 2.0))
    streaks = 1 + random.uniform(0, 0.35) * fields.smooth(random, size, random.uniform(2, 30))
    opacity = random.uniform(0.45, 1.0)
    cover = np.clip(cover * opacity * streaks, 0, 1)
    colour = np.asarray(PENS[random.integers(len(PENS))]) + random.normal(0, 15, 3)
    colour = np.clip(colour, 5, 245).astype(np.float32)
    # Ink lets light through: where it is thin, what is below multiplies.
    through = canvas * (colour / 255.0)
    ink = 0.5 * colour + 0.5 * through
    canvas += cover[..., None] * (ink - canvas)
    return np.asarray(cover > 0.35)


def dust(canvas: Canvas, random: np.random.Generator, mpp: float) -> None:
    """Specks, out of focus or sharp, grey or coloured, and fibres."""
    size = canvas.shape[0]
    for _ in range(int(random.integers(1, 14))):
        radius = np.exp(random.uniform(np.log(6), np.log(130))) / mpp
        spot = _smudge(random, size, radius)
        grey = random.uniform(15, 190)
        colour = np.full(3, grey) + random.normal(0, 12 if random.random() < 0.7 else 60, 3)
        _paint(canvas, spot * random.uniform(0.3, 1.0), np.clip(colour, 0, 235))
    for _ in range(int(random.integers(0, 3))):
        fibre = fields.stroke(random, size, max(1.0, random.uniform(8, 30) / mpp))
        fibre = fields.blur(fibre, random.uniform(0.3, 2.0))
        _paint(canvas, fibre * random.uniform(0.1, 0.7), random.uniform(30, 200, 3))


def bubbles(canvas: Canvas, random: np.random.Generator, mpp: float) -> None:
    """Air under the coverslip: a dark rim, a bright line inside it, a slightly changed interior."""
    size = canvas.shape[0]
    for _ in range(int(random.integers(1, 5))):
        radius = np.exp(random.uniform(np.log(80), np.log(1500))) / mpp
        inside = fields.blob(random, size, radius, random.uniform(0, 0.12))
        rim = np.exp(-((inside / (random.uniform(8, 30) / mpp)) ** 2))
        line = np.exp(-(((inside - random.uniform(20, 60) / mpp) / (10 / mpp)) ** 2))
        canvas *= (1 - random.uniform(0.15, 0.8) * rim)[..., None]
        canvas += (random.uniform(0, 25) * line)[..., None]
        canvas *= np.where(inside > 0, random.uniform(0.93, 1.05), 1.0)[..., None]


def coverslip(canvas: Canvas, random: np.random.Generator, mpp: float) -> None:
    """The edge of the coverslip: a dark and a bright line, and another tint beyond it."""
    distance = fields.half_plane(random, canvas.shape[0], upright=True)
    width = random.uniform(6, 60) / mpp
    dark = np.exp(-((distance / width) ** 2)) * random.uniform(0.05, 0.75)
    bright = np.exp(-(((distance - 2 * width) / width) ** 2)) * random.uniform(0, 0.08)
    canvas *= (1 - dark + bright)[..., None]
    beyond = special.expit(distance / max(width / 2, 0.5))
    tint = random.uniform(0.86, 1.0) - np.abs(random.normal(0, 0.03, 3))
    canvas *= 1 + beyond[..., None] * (tint.astype(np.float32) - 1)
    if random.random() < 0.3:
        grain = fields.smooth(random, canvas.shape[0], random.uniform(10, 40) / mpp)
        canvas *= (1 - 0.08 * beyond * np.abs(grain))[..., None]


def border(canvas: Canvas, random: np.random.Generator, mpp: float) -> fields.Mask:
    """Unscanned area, black, white or grey, as a strip, a slanted corner or steps of tiles.

    Returns:
        Where nothing was scanned.
    """
    size = canvas.shape[0]
    kind = random.integers(3)
    if kind == 0:
        bare = fields.half_plane(random, size, upright=True) > random.uniform(0, size / 2)
    elif kind == 1:
        bare = fields.half_plane(random, size, upright=False) > random.uniform(size / 6, size / 2)
    else:
        cell = int(random.integers(size // 8, size // 2))
        coarse = random.random((size // cell + 2, size // cell + 2)) < 0.3
        bare = np.kron(coarse, np.ones((cell, cell), np.bool_))[:size, :size]
    shade = random.choice([random.uniform(0, 30), 255.0, random.uniform(225, 250)])
    canvas[bare] = shade + (random.normal(0, 2, 3) if shade < 250 else 0)
    return np.asarray(bare)


def fold(od: stains.Density, random: np.random.Generator, mpp: float) -> stains.Density:
    """Tissue folded over itself: a band where the stain counts double."""
    line = fields.stroke(random, od.shape[0], random.uniform(20, 120) / mpp)
    line = fields.blur(line, random.uniform(0.4, 1.5))
    return np.asarray(od * (1 + random.uniform(0.4, 1.6) * line[..., None]), dtype=np.float32)


def unfocus(canvas: Canvas, random: np.random.Generator) -> Canvas:
    """Blur all of the canvas, or one side of it."""
    soft = fields.blur(canvas, random.uniform(0.5, 3.0))
    if random.random() < 0.5:
        return soft
    side = fields.half_plane(random, canvas.shape[0], upright=False)
    weight = special.expit(side / 10)
    return np.asarray(canvas + weight[..., None] * (soft - canvas), dtype=np.float32)


def light(canvas: Canvas, random: np.random.Generator) -> Canvas:
    """Another lamp and another camera: gain per channel, gamma, a gradient, noise."""
    size = canvas.shape[0]
    gain = random.uniform(0.9, 1.05) + random.normal(0, 0.012, 3)
    gamma = np.exp(random.normal(0, 0.12))
    slope = 1 + random.uniform(0, 0.02) * fields.smooth(random, size, size / 2)
    values = np.clip(canvas, 0, 255) / 255
    values = np.power(values, gamma) * gain.astype(np.float32) * slope[..., None]
    noise = random.normal(0, random.uniform(0, 3), (size, size, 1))
    return np.asarray(values * 255 + noise, dtype=np.float32)


def jpeg(rgb: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Through a JPEG encoder at quality 25 to 90, colour at half resolution or full."""
    buffer = io.BytesIO()
    quality, colour = int(random.integers(25, 91)), int(random.integers(0, 3))
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=quality, subsampling=colour)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _smudge(random: np.random.Generator, size: int, radius: float) -> fields.Field:
    """Cover in [0, 1] of one speck; only its neighbourhood is computed."""
    soft = random.uniform(0.3, 0.8) * radius + 0.3
    half = int(np.ceil(radius + 6 * soft))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle, stretch = random.uniform(0, np.pi), random.uniform(0.3, 1.0)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = (y * np.cos(angle) - x * np.sin(angle)) / stretch
    spot = special.expit((radius - np.hypot(along, across)) / soft)
    cover = np.zeros((size, size), np.float32)
    row, column = random.integers(0, size, 2)
    top, left = max(row - half, 0), max(column - half, 0)
    bottom, right = min(row + half + 1, size), min(column + half + 1, size)
    cover[top:bottom, left:right] = spot[
        top - row + half : bottom - row + half, left - column + half : right - column + half
    ]
    return cover


def _paint(canvas: Canvas, cover: fields.Field, colour: npt.NDArray[np.float64]) -> None:
    canvas += cover[..., None] * (colour.astype(np.float32) - canvas)
