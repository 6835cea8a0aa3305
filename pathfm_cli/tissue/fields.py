"""Random shapes on a square canvas: smooth fields, blobs, strokes, lines, cells."""

from __future__ import annotations

import numpy as np
from numpy import typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage, spatial

Field = npt.NDArray[np.float32]
"""(S, S) float32."""
Mask = npt.NDArray[np.bool_]
"""(S, S) bool."""


def smooth(random: np.random.Generator, size_px: int, grain_px: float) -> Field:
    """A smooth random field with mean about 0, deviation about 1 and features of `grain_px`."""
    cells = max(2, round(size_px / grain_px) + 1)
    coarse = random.normal(0, 1, (cells, cells)).astype(np.float32)
    image = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(image)


def blob(random: np.random.Generator, size_px: int, radius_px: float, ragged: float) -> Field:
    """Signed distance, about, to an irregular disc: above 0 inside, in pixels.

    Args:
        random: where the numbers come from.
        size_px: side of the canvas.
        radius_px: of the disc, whose centre may lie anywhere.
        ragged: how much the outline departs from a circle, as a share of the radius.
    """
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32) - random.uniform(0, size_px, 2).astype(
        np.float32
    ).reshape(2, 1, 1)
    stretch = random.uniform(0.45, 1.0)
    angle = random.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = (y * np.cos(angle) - x * np.sin(angle)) / stretch
    noise = smooth(random, size_px, radius_px) + 0.5 * smooth(random, size_px, radius_px / 3)
    return np.asarray(
        radius_px - np.hypot(along, across) + ragged * radius_px * noise, dtype=np.float32
    )


def stroke(random: np.random.Generator, size_px: int, width_px: float) -> Field:
    """Cover in [0, 1] of a curved stroke: across the canvas, a loop, a dot, a letter."""
    turns = int(random.integers(2, 6))
    reach = random.choice([0.25, 0.6, 1.3])
    centre = random.uniform(0, size_px, 2)
    knots = centre + random.normal(0, reach * size_px / 2, (turns, 2))
    if random.random() < 0.25:
        knots = np.vstack([knots, knots[:1]])
    line = _curve(knots)
    image = Image.new("L", (size_px, size_px), 0)
    pen = ImageDraw.Draw(image)
    points = [(float(x), float(y)) for x, y in line]
    pen.line(points, 255, width=max(1, round(width_px)), joint="curve")
    for x, y in (points[0], points[-1]):
        half = width_px / 2
        pen.ellipse((x - half, y - half, x + half, y + half), 255)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def half_plane(random: np.random.Generator, size_px: int, *, upright: bool) -> Field:
    """Signed distance in pixels to a line across the canvas; above 0 on one side.

    Args:
        random: where the numbers come from.
        size_px: side of the canvas.
        upright: almost along an axis, as the edge of a coverslip or a scan is.
    """
    along = float(random.integers(0, 4)) * np.pi / 2 + random.normal(0, 0.03)
    angle = along if upright else random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32)
    through = random.uniform(0.05, 0.95, 2) * size_px
    distance = (x - through[0]) * np.cos(angle) + (y - through[1]) * np.sin(angle)
    return np.asarray(distance, dtype=np.float32)


def cells(random: np.random.Generator, size_px: int, spacing_px: float, wall_px: float) -> Field:
    """Strength in [0, 1] of the walls between rounded cells, as membranes of fat cells."""
    count = max(8, int((size_px / spacing_px + 2) ** 2))
    centres = random.uniform(-spacing_px, size_px + spacing_px, (count, 2))
    y, x = np.mgrid[:size_px, :size_px]
    near, _ = spatial.cKDTree(centres).query(np.stack([x.ravel(), y.ravel()], axis=1), k=2)
    gap = (near[:, 1] - near[:, 0]).reshape(size_px, size_px)
    walls = np.exp(-((gap / wall_px) ** 2))
    return np.asarray(walls, dtype=np.float32)


def blur(field: npt.NDArray[np.float32], sigma_px: float) -> npt.NDArray[np.float32]:
    """Gaussian blur along the first two axes."""
    sigma = (sigma_px, sigma_px, 0)[: field.ndim]
    return np.asarray(ndimage.gaussian_filter(field, sigma, mode="nearest", truncate=3.0))


def _curve(knots: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Points along a smooth curve near the knots: corners cut three times (Chaikin)."""
    line = knots
    for _ in range(3):
        first, second = line[:-1], line[1:]
        cut = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], axis=1)
        line = np.vstack([line[:1], cut.reshape(-1, 2), line[-1:]])
    return line
