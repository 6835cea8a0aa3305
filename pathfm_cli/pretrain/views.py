"""What happens to each view of each patch, drawn as a pure function of (seed, patch index).

Source: facebookresearch/dino, `DataAugmentationDINO`, and torchvision's `RandomResizedCrop` and
`ColorJitter`, whose distributions these are. Legend: B batch, V views, A attempts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathfm_cli.data import draw
from pathfm_cli.pretrain import recipe, sections

PURPOSE = 101
"""Key of this stream of random numbers; patches and drop path have others."""
EXTRAS = 106
"""Key of the stream of what the paper's recipes leave off, so that it moves no other number."""

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

_ATTEMPTS = 10
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_NUMBERS = 2 * _ATTEMPTS + 2 + 15
"""Uniform numbers a view takes: areas and ratios, a position, and what `_changes` uses."""
_EXTRA_NUMBERS = 2 + 1 + 6
"""Uniform numbers of `EXTRAS` a view takes, see `_extras`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Views:
    """Parameters of V views of B patches; all arrays are (B, V), three of them with one axis more.

    These are `order`, `hed_factor` and `hed_shift`.
    """

    left_px: Float
    """Left edge of the crop, whole pixels of the patch."""
    top_px: Float
    width_px: Float
    height_px: Float
    flip_x: Bool
    flip_y: Bool
    jitter: Bool
    """Whether the colour changes."""
    brightness: Float
    contrast: Float
    saturation: Float
    hue: Float
    """Shift in turns."""
    order: NDArray[np.int64]
    """(B, V, 4): which of brightness, contrast, saturation, hue (0 to 3) comes first to last."""
    grey: Bool
    sigma_px: Float
    """Deviation of the blur; 0 where there is none."""
    solarise: Bool
    turns: NDArray[np.int64]
    """Quarter turns to the left, 0 to 3."""
    hed: Bool
    """Whether the stains change."""
    hed_factor: Float
    """(B, V, 3): factors of haematoxylin, eosin, DAB."""
    hed_shift: Float
    """(B, V, 3): what is added to them, in optical density."""

    def select(self, columns: slice) -> Views:
        """The same for some of the views."""
        return Views(
            **{f.name: getattr(self, f.name)[:, columns] for f in dataclasses.fields(self)}
        )


def parameters(
    settings: recipe.Recipe, indices: Sequence[int] | NDArray[np.int64], size_px: int
) -> Views:
    """Draw the parameters of all views of the patches with these indices.

    Args:
        settings: the recipe.
        indices: global patch indices, length B.
        size_px: side of the patches.

    Returns:
        Two global views first, then the local ones.
    """
    crops = settings.crops
    numbers_BVN = _numbers(settings, indices, PURPOSE, _NUMBERS)
    crop, other = np.split(numbers_BVN, [2 * _ATTEMPTS + 2], axis=-1)
    if crops.context_scale is None:
        scale_V2 = np.array([crops.global_scale] * 2 + [crops.local_scale] * crops.local_count)
        boxes = _boxes(crop, scale_V2, size_px)
    else:
        side_V = np.array([crops.global_size_px] * 2 + [crops.local_size_px] * crops.local_count)
        boxes = _windows(crop, side_V, crops.context_scale, size_px)
    augment = settings.augment
    shape = (len(indices), 2 + crops.local_count, _EXTRA_NUMBERS)
    asked = augment.rot90 > 0 or augment.hed > 0
    more = _numbers(settings, indices, EXTRAS, _EXTRA_NUMBERS) if asked else np.ones(shape)
    return Views(**boxes, **_changes(other, augment), **_extras(more, augment))


def _numbers(
    settings: recipe.Recipe, indices: Sequence[int] | NDArray[np.int64], purpose: int, count: int
) -> Float:
    """(B, V, count) uniform numbers, each patch's a function of (seed, index, purpose)."""
    shape = (2 + settings.crops.local_count, count)
    seed = settings.train.seed
    return np.stack([draw.rng(seed, int(index), purpose).random(shape) for index in indices])


def _windows(
    numbers_BVN: Float, side_V: NDArray[np.int64], scale: tuple[float, float], size_px: int
) -> dict[str, Any]:
    """Squares of the views' own sides times a factor, anywhere in the patch."""
    side = np.minimum(np.rint(_between(numbers_BVN[..., 0], *scale) * side_V), size_px)
    left = np.floor(numbers_BVN[..., -2] * (size_px - side + 1))
    top = np.floor(numbers_BVN[..., -1] * (size_px - side + 1))
    return {"left_px": left, "top_px": top, "width_px": side, "height_px": side}


def _boxes(numbers_BVN: Float, scale_V2: Float, size_px: int) -> dict[str, Any]:
    """Random resized crops: the first of ten drawn boxes that fits, else the whole patch."""
    area_BVA = _between(numbers_BVN[..., :_ATTEMPTS], scale_V2[:, :1], scale_V2[:, 1:]) * size_px**2
    ratio_BVA = np.exp(_between(numbers_BVN[..., _ATTEMPTS : 2 * _ATTEMPTS], *_LOG_RATIO))
    width_BVA = np.rint(np.sqrt(area_BVA * ratio_BVA))
    height_BVA = np.rint(np.sqrt(area_BVA / ratio_BVA))
    fits = (width_BVA > 0) & (width_BVA <= size_px) & (height_BVA > 0) & (height_BVA <= size_px)
    first = fits.argmax(axis=-1)[..., None]
    any_fits = fits.any(axis=-1)
    width = np.where(any_fits, np.take_along_axis(width_BVA, first, -1)[..., 0], size_px)
    height = np.where(any_fits, np.take_along_axis(height_BVA, first, -1)[..., 0], size_px)
    left = np.floor(numbers_BVN[..., -2] * (size_px - width + 1))
    top = np.floor(numbers_BVN[..., -1] * (size_px - height + 1))
    return {"left_px": left, "top_px": top, "width_px": width, "height_px": height}


def _changes(numbers_BVN: Float, augment: sections.Augment) -> dict[str, Any]:
    """Everything of `Views` after the crop."""
    u = np.moveaxis(numbers_BVN, -1, 0)
    views = u.shape[-1]
    blur = _per_view(views, augment.blur_first, augment.blur_second, augment.blur_local)
    blur = blur if augment.blur_chance == "of-blur" else 1 - blur
    solarise = _per_view(views, 0.0, augment.solarise_second, 0.0)
    return {
        "flip_x": u[0] < augment.horizontal_flip,
        "flip_y": u[1] < augment.vertical_flip,
        "jitter": u[2] < augment.jitter,
        "brightness": _between(u[3], 1 - augment.brightness, 1 + augment.brightness),
        "contrast": _between(u[4], 1 - augment.contrast, 1 + augment.contrast),
        "saturation": _between(u[5], 1 - augment.saturation, 1 + augment.saturation),
        "hue": _between(u[6], -augment.hue, augment.hue),
        "order": np.moveaxis(u[7:11], 0, -1).argsort(axis=-1),
        "grey": u[11] < augment.grey,
        "sigma_px": np.where(u[12] < blur, _between(u[13], *augment.blur_sigma_px), 0.0),
        "solarise": u[14] < solarise,
    }


def _extras(numbers_BVN: Float, augment: sections.Augment) -> dict[str, Any]:
    """Turns and stains."""
    u = np.moveaxis(numbers_BVN, -1, 0)
    turns = 1 + np.minimum(np.floor(3 * u[1]), 2).astype(np.int64)
    factor, shift = augment.hed_factor, augment.hed_shift
    return {
        "turns": np.where(u[0] < augment.rot90, turns, 0),
        "hed": u[2] < augment.hed,
        "hed_factor": _between(numbers_BVN[..., 3:6], 1 - factor, 1 + factor),
        "hed_shift": _between(numbers_BVN[..., 6:9], -shift, shift),
    }


def _per_view(views: int, first: float, second: float, local: float) -> Float:
    return np.array([first, second] + [local] * (views - 2))


def _between(uniform: Float, low: Float | float, high: Float | float) -> Float:
    return np.asarray(low + (high - low) * uniform)
