"""Training scenes with known truth: a pure function of (seed, index) and the pairs it cuts from.

Tissue of a pair enters as optical density, so that it can be stained anew and laid over other glass
by multiplying. Truth is the pair's own, cut along the same lines. A pixel is tissue if stained or
fatty tissue lies there and no unscanned border and no dense marker ink hides it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy import typing as npt
from PIL import Image

from pathfm_cli.data import draw
from pathfm_cli.tissue import artefacts, fields, pairs, stains

SCENE = 101
"""Purpose number of `draw.rng` for scenes."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Probabilities of what a scene holds."""

    scanned: float = 0.35
    """A piece of a pair as it was scanned, glass and all; else tissue cut out and composited."""
    blank: float = 0.08
    """No tissue at all."""
    fragmented: float = 0.25
    """Many small pieces instead of a few large ones."""
    fatty: float = 0.35
    """Drawn fat beside the tissue."""
    pale: float = 0.25
    """Stain at 12 to 45 % of its strength."""
    ihc: float = 0.12
    pas: float = 0.10
    fold: float = 0.12
    blur: float = 0.20
    pen: float = 0.30
    dust: float = 0.35
    bubbles: float = 0.12
    coverslip: float = 0.15
    border: float = 0.20
    jpeg: float = 0.60


_PLAIN = Recipe(**{field.name: 0.0 for field in dataclasses.fields(Recipe)})

CATEGORIES: Mapping[str, Recipe] = {
    "plain": dataclasses.replace(_PLAIN, jpeg=0.5),
    "pale": dataclasses.replace(_PLAIN, pale=1.0, jpeg=0.5),
    "fatty": dataclasses.replace(_PLAIN, fatty=1.0, jpeg=0.5),
    "fragmented": dataclasses.replace(_PLAIN, fragmented=1.0, jpeg=0.5),
    "ihc": dataclasses.replace(_PLAIN, ihc=1.0, jpeg=0.5),
    "pas": dataclasses.replace(_PLAIN, pas=1.0, jpeg=0.5),
    "pen": dataclasses.replace(_PLAIN, pen=1.0, jpeg=0.5),
    "edges": dataclasses.replace(_PLAIN, border=0.7, coverslip=0.7, jpeg=0.5),
    "dust": dataclasses.replace(_PLAIN, dust=1.0, bubbles=0.5, jpeg=0.5),
    "blur": dataclasses.replace(_PLAIN, blur=1.0, fold=0.5, jpeg=1.0),
    "blank": dataclasses.replace(_PLAIN, blank=1.0, dust=0.5, pen=0.3, border=0.3, jpeg=0.5),
}
"""One difficulty at a time, for benchmarks."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A thumbnail and its truth.

    Attributes:
        rgb: (S, S, 3) uint8.
        mask: (S, S) bool, true on tissue.
    """

    rgb: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


def scene(
    found: Sequence[pairs.Pair],
    recipe: Recipe,
    seed: int,
    index: int,
    *,
    size_px: int,
    mpp: float,
) -> Scene:
    """Make scene number `index`.

    Args:
        found: pairs to cut from, at `mpp`.
        recipe: what scenes hold.
        seed: 0 to 2^64 - 1.
        index: number of the scene.
        size_px: side of the scene.
        mpp: resolution of the scene and the pairs, um/px.
    """
    random = draw.rng(seed, index, SCENE)
    glass = _glass(random)
    if random.random() < recipe.scanned:
        od, mask, glass = _cut(found, random, size_px)
        od = _stained(od, recipe, random)
    elif random.random() < recipe.blank:
        od, mask = np.zeros((size_px, size_px, 3), np.float32), np.zeros((size_px,) * 2, np.bool_)
    else:
        od, mask = _composite(found, recipe, random, size_px, mpp)
    if random.random() < recipe.fold:
        od = np.where(mask[..., None], artefacts.fold(od, random, mpp), od)
    canvas = stains.light(od, glass)
    return _finish(canvas, mask, recipe, random, mpp)


def _glass(random: np.random.Generator) -> npt.NDArray[np.float32]:
    tint = random.uniform(228, 253) + random.normal(0, 2.5, 3)
    return np.clip(tint, 205, 255).astype(np.float32)


def _cut(
    found: Sequence[pairs.Pair], random: np.random.Generator, size_px: int
) -> tuple[stains.Density, fields.Mask, npt.NDArray[np.float32]]:
    """A turned, mirrored and scaled window of a pair, most often around the rim of its tissue."""
    pair = found[int(random.integers(len(found)))]
    height, width = pair.mask.shape
    centre = random.uniform(0, 1, 2) * (width, height)
    for _ in range(8):
        x, y = (random.uniform(0, 1, 2) * (width, height)).astype(int)
        if pair.mask[y, x]:
            centre = np.array([x, y]) + random.normal(0, size_px / 4, 2)
            break
    angle, scale = random.uniform(0, 2 * np.pi), np.exp(random.uniform(-0.45, 0.35))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if random.random() < 0.5:
        turn[:, 0] *= -1
    shift = centre - turn @ np.full(2, size_px / 2)
    data = (*turn[0], shift[0], *turn[1], shift[1])
    place = (size_px, size_px), Image.Transform.AFFINE, data
    fill = tuple(int(round(value)) for value in pair.glass.tolist())
    rgb = Image.fromarray(pair.rgb).transform(
        *place, resample=Image.Resampling.BILINEAR, fillcolor=fill
    )
    mask = Image.fromarray(pair.mask.astype(np.uint8) * 255).transform(
        *place, resample=Image.Resampling.BILINEAR, fillcolor=0
    )
    return stains.density(np.asarray(rgb), pair.glass), np.asarray(mask) > 127, pair.glass


def _composite(
    found: Sequence[pairs.Pair],
    recipe: Recipe,
    random: np.random.Generator,
    size_px: int,
    mpp: float,
) -> tuple[stains.Density, fields.Mask]:
    """Pieces of one pair within random outlines, laid on nothing; drawn fat between them."""
    many = random.random() < recipe.fragmented
    count = int(random.integers(4, 14) if many else random.integers(1, 3))
    span = size_px * (0.05 if many else 0.35)
    region = np.full((size_px, size_px), -np.inf, np.float32)
    for _ in range(count):
        piece = fields.blob(random, size_px, random.uniform(0.6, 1.6) * span, 0.3)
        region = np.maximum(region, piece)
    od, mask, _ = _cut(found, random, size_px)
    edge = np.clip(region / random.uniform(1.0, 2.5) + 0.5, 0, 1)
    inside = fields.blur(mask.astype(np.float32), 0.7) * edge
    od, mask = _stained(od, recipe, random) * inside[..., None], mask & (region > 0)
    if random.random() < recipe.fatty:
        fat = fields.blob(random, size_px, random.uniform(0.25, 0.6) * size_px, 0.2)
        od, mask = _with_fat(od, mask, fat, random, mpp)
    return od, mask


def _with_fat(
    od: stains.Density,
    mask: fields.Mask,
    region: fields.Field,
    random: np.random.Generator,
    mpp: float,
) -> tuple[stains.Density, fields.Mask]:
    """Fat where `region` is above 0 and no tissue lies: thin walls around empty cells.

    Cells of fat are 50 to 120 um wide.
    """
    size = mask.shape[0]
    spacing, wall = random.uniform(50, 120) / mpp, random.uniform(0.35, 1.0) * 8 / mpp
    walls = fields.cells(random, size, spacing, max(wall, 0.35))
    strands = np.maximum(fields.smooth(random, size, 300 / mpp) - 1.4, 0)
    amount = random.uniform(0.05, 0.35) * (walls + strands) * np.clip(region / 2, 0, 1)
    colour = np.asarray(stains.EOSIN) * random.uniform(0.5, 1.0)
    colour = colour + np.asarray(stains.HAEMATOXYLIN) * random.uniform(0.1, 0.6)
    fat = amount[..., None] * colour.astype(np.float32) * ~mask[..., None]
    return od + fat, mask | (region > 0)


def _stained(od: stains.Density, recipe: Recipe, random: np.random.Generator) -> stains.Density:
    chance = random.random()
    if chance < recipe.ihc:
        od = stains.as_ihc(od, random)
    elif chance < recipe.ihc + recipe.pas:
        od = stains.as_pas(od, random)
    od = stains.jitter(od, random, 0.35)
    if random.random() < recipe.pale:
        od = od * random.uniform(0.12, 0.45)
    return np.asarray(od, dtype=np.float32)


def _finish(
    canvas: artefacts.Canvas,
    mask: fields.Mask,
    recipe: Recipe,
    random: np.random.Generator,
    mpp: float,
) -> Scene:
    """Lay artefacts over a canvas, and photograph it."""
    hidden = np.zeros_like(mask)
    if random.random() < recipe.bubbles:
        artefacts.bubbles(canvas, random, mpp)
    if random.random() < recipe.coverslip:
        artefacts.coverslip(canvas, random, mpp)
    if random.random() < recipe.pen:
        for _ in range(int(random.integers(1, 4))):
            hidden |= artefacts.pen(canvas, random, mpp)
    if random.random() < recipe.dust:
        artefacts.dust(canvas, random, mpp)
    if random.random() < recipe.blur:
        canvas = artefacts.unfocus(canvas, random)
    canvas = artefacts.light(canvas, random)
    if random.random() < recipe.border:
        hidden |= artefacts.border(canvas, random, mpp)
    rgb = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    if random.random() < recipe.jpeg:
        rgb = artefacts.jpeg(rgb, random)
    return Scene(rgb, mask & ~hidden)
