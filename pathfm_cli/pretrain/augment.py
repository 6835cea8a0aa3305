"""Patches to normalised views, batched on the device with parameters of each view's own.

Source: facebookresearch/dino, `DataAugmentationDINO`: crop and flip, colour jitter, grey, blur,
solarise; then mean and deviation 0.5 (paper, IV-C (v)). Turns and changes of the stains come
between crop and colour jitter; they are off in the paper's recipes.
Legend: B batch, V views, N images = V * B (view by view), S patch side, T view side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pathfm_cli.model import density
from pathfm_cli.pretrain import colour, recipe, resample, views

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)

_BLUR_DEVIATIONS = 4

_JITTERS: tuple[tuple[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]], ...] = (
    ("brightness", colour.brightness),
    ("contrast", colour.contrast),
    ("saturation", colour.saturation),
    ("hue", colour.hue),
)


def parts(
    settings: recipe.Recipe,
    pixels_BSSC: torch.Tensor,
    indices_B: NDArray[np.int64],
    count: int,
) -> Iterator[list[torch.Tensor]]:
    """The views of a batch in `count` equal parts, each made when it is its turn; as `crops`."""
    size = len(indices_B) // count
    for start in range(0, size * count, size):
        part = slice(start, start + size)
        yield crops(settings, pixels_BSSC[part], indices_B[part])


@torch.no_grad()
def crops(
    settings: recipe.Recipe, pixels_BSSC: torch.Tensor, indices_B: NDArray[np.int64]
) -> list[torch.Tensor]:
    """Make all views of a batch of patches.

    Args:
        settings: the recipe.
        pixels_BSSC: uint8, RGB, on the device where the views are wanted.
        indices_B: global patch indices, which decide every random choice.

    Returns:
        [(2 B, 3, T, T)] and, if there are local views, [.., (V B, 3, t, t)], float32, normalised,
        view by view.
    """
    drawn = views.parameters(settings, indices_B, pixels_BSSC.shape[1])
    images_BSCS = pixels_BSSC.transpose(2, 3).float() / 255
    sizes = [(slice(0, 2), settings.crops.global_size_px)]
    if settings.crops.local_count:
        sizes.append((slice(2, None), settings.crops.local_size_px))
    return [_make(images_BSCS, drawn.select(which), settings, size) for which, size in sizes]


def _make(
    images_BSCS: torch.Tensor, drawn: views.Views, settings: recipe.Recipe, size_px: int
) -> torch.Tensor:
    images = _cut(images_BSCS, drawn, size_px)
    for turns in (1, 2, 3):
        images = _where(images, drawn.turns == turns, _turned(turns))
    images = _where(images, drawn.hed, colour.hed, drawn.hed_factor, drawn.hed_shift)
    images = _jitter(images, drawn)
    images = _where(images, drawn.grey, colour.grey)
    images = _blur(images, drawn.sigma_px, settings.augment.blur_sigma_px[1])
    images = _where(images, drawn.solarise, colour.solarise)
    if settings.model.input == "density":
        return density.standardise(images)
    return (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(STD)[:, None, None]


def _cut(images_BSCS: torch.Tensor, drawn: views.Views, size_px: int) -> torch.Tensor:
    """Crop, mirror and resize, one view after the other to bound memory; (V * B, 3, T, T)."""
    source_px = images_BSCS.shape[1]

    def matrices(start: views.Float, length: views.Float, flip: views.Bool) -> torch.Tensor:
        start_px, length_px = _tensor(images_BSCS, start), _tensor(images_BSCS, length)
        mirrored = torch.from_numpy(flip.copy()).to(images_BSCS.device)
        return resample.resize(start_px, length_px, mirrored, source_px, size_px)

    return torch.cat(
        [
            resample.apply(
                images_BSCS,
                matrices(drawn.top_px[:, v], drawn.height_px[:, v], drawn.flip_y[:, v]),
                matrices(drawn.left_px[:, v], drawn.width_px[:, v], drawn.flip_x[:, v]),
            )
            for v in range(drawn.left_px.shape[1])
        ]
    ).clamp_(0, 1)


def _turned(turns: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: images.rot90(turns, (-2, -1))


def _jitter(images: torch.Tensor, drawn: views.Views) -> torch.Tensor:
    """Apply the four colour changes, each image in its own order."""
    for place in range(len(_JITTERS)):
        for number, (name, change) in enumerate(_JITTERS):
            chosen = drawn.jitter & (drawn.order[..., place] == number)
            images = _where(images, chosen, change, getattr(drawn, name))
    return images


def _blur(images: torch.Tensor, sigma_BV: views.Float, largest_px: float) -> torch.Tensor:
    reach_px = math.ceil(_BLUR_DEVIATIONS * largest_px)

    def blurred(some: torch.Tensor, sigma_px: torch.Tensor) -> torch.Tensor:
        matrices = resample.blur(sigma_px, some.shape[-1], reach_px)
        return resample.apply(some.transpose(1, 2), matrices, matrices)

    return _where(images, sigma_BV > 0, blurred, sigma_BV)


def _where(
    images: torch.Tensor,
    chosen_BV: views.Bool,
    change: Callable[..., torch.Tensor],
    *values_BV: views.Float,
) -> torch.Tensor:
    """Change the chosen images in place; which they are is known here, so no device is asked."""
    rows = np.flatnonzero(chosen_BV.T)
    if len(rows):
        index = torch.from_numpy(rows).to(images.device)
        # View by view, as the images lie; a value may have an axis of its own behind (B, V).
        flat = (values.swapaxes(0, 1).reshape(-1, *values.shape[2:]) for values in values_BV)
        arguments = (_tensor(images, values[rows]) for values in flat)
        images.index_copy_(0, index, change(images[index], *arguments))
    return images


def _tensor(like: torch.Tensor, values: views.Float) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device)
