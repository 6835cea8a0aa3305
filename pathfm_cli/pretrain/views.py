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

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

_ATTEMPTS = 10
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_NUMBERS = 2 * _ATTEMPTS + 2 + 15
"""Uniform numbers a view takes: areas and ratios, a position, and what `_changes` uses."""


@dataclasses.dataclass(frozen=True, slots=True)
class Views:
    """Parameters of V views of B patches; every array has the shape (B, V) but for `order`."""

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
    locals_ = settings.crops.local_count
    numbers_BVN = np.stack(
        [
            draw.rng(settings.train.seed, int(index), PURPOSE).random((2 + locals_, _NUMBERS))
            for index in indices
        ]
    )
    scale_V2 = np.array([settings.crops.global_scale] * 2 + [settings.crops.local_scale] * locals_)
    crop, other = np.split(numbers_BVN, [2 * _ATTEMPTS + 2], axis=-1)
    return Views(**_boxes(crop, scale_V2, size_px), **_changes(other, settings.augment))


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


def _per_view(views: int, first: float, second: float, local: float) -> Float:
    return np.array([first, second] + [local] * (views - 2))


def _between(uniform: Float, low: Float | float, high: Float | float) -> Float:
    return np.asarray(low + (high - low) * uniform)
