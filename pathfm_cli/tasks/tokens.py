"""Patch tokens of a frozen encoder: cached for the crops of training, by window for a whole image.

Legend: B = batch, N = crops, h x w = grid of tokens, D = width, S = side of a crop in pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import device as devices
from pathfm_cli.model import transform, weights
from pathfm_cli.tasks import masks

T = TypeVar("T")
BATCH = 32
"""Crops in one forward pass."""
MAX_CACHE_BYTES = 4 << 30
MAX_SUM_FLOATS = 1 << 28
"""Class probabilities of one image: 1 GB."""


def encode(encoder: weights.Encoder, images_BSS3: torch.Tensor) -> torch.Tensor:
    """Patch tokens of square crops after the encoder's last norm.

    Args:
        encoder: a vision transformer.
        images_BSS3: (B, S, S, 3) uint8.

    Returns:
        (B, h, w, D) float32 on the encoder's device.

    Raises:
        errors.UsageError: the encoder has no patch tokens.
    """
    forward = getattr(encoder.module, "forward_features", None)
    pixels = transform.normalise(images_BSS3.to(encoder.device), encoder.mean, encoder.std)
    with torch.inference_mode(), devices.autocast(encoder.device, encoder.precision):
        found = forward(pixels) if forward else None
    if found is None or found.ndim != 3:
        raise errors.UsageError(
            f"{encoder.name} has no patch tokens to segment by.", "a vision transformer has"
        )
    patches_BND: torch.Tensor = found[:, encoder.prefix_tokens :].float()
    side = math.isqrt(patches_BND.shape[1])
    return patches_BND.reshape(len(patches_BND), side, side, -1)


def cache(
    crops: Iterable[masks.Labelled],
    count: int,
    encoder: weights.Encoder,
    advance: Callable[[int], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode crops once.

    Args:
        crops: squares of S pixels.
        count: the most that come.
        encoder: a vision transformer.
        advance: called with the crops of each batch.

    Returns:
        (N, h, w, D) float32 tokens and (N, S, S) uint8 classes, on the encoder's device.

    Raises:
        errors.UsageError: the tokens do not fit in memory, or as `encode`.
        errors.InputError: no crop came.
    """
    tokens_NhwD = labels_NSS = torch.empty(0)
    done = 0
    for batch in _batches(crops):
        pixels = torch.from_numpy(np.stack([crop.image for crop in batch]))
        found = encode(encoder, pixels)
        if not done:
            _check_memory(count * found[0].numel() * 4, count)
            tokens_NhwD = torch.empty((count, *found.shape[1:]), device=found.device)
            sides = batch[0].label.shape
            labels_NSS = torch.empty((count, *sides), dtype=torch.uint8, device=found.device)
        until = done + len(batch)
        tokens_NhwD[done:until] = found
        labels_NSS[done:until] = torch.from_numpy(np.stack([crop.label for crop in batch]))
        done = until
        advance(len(batch))
    if not done:
        raise errors.InputError("No image of train can be used.", "look at the paths in the table")
    return tokens_NhwD[:done], labels_NSS[:done]


def predict(
    image: masks.Pixels,
    encoder: weights.Encoder,
    decoder: nn.Module,
    classes: int,
    size_px: int,
    stride_px: int,
) -> masks.Pixels:
    """Class of every pixel of an image: windows overlap, their probabilities are summed.

    Args:
        image: (H, W, 3) uint8.
        encoder: a vision transformer.
        decoder: turns tokens and S into logits (B, C, S, S).
        classes: C.
        size_px: S.
        stride_px: distance of windows.

    Raises:
        errors.SlideError: the image is too large for the sums.
    """
    height, width = image.shape[:2]
    blank = np.zeros((height, width), dtype=np.uint8)
    padded = masks.pad(masks.Labelled(image, blank), size_px).image
    if padded[..., 0].size * classes > MAX_SUM_FLOATS:
        raise errors.SlideError(f"{width} x {height} px are too many for {classes} classes")
    sums_CHW = torch.zeros((classes, *padded.shape[:2]))
    for corners in _batches(_corners(padded.shape[0], padded.shape[1], size_px, stride_px)):
        windows = np.stack([padded[y : y + size_px, x : x + size_px] for y, x in corners])
        with torch.inference_mode():
            logits_BCSS = decoder(encode(encoder, torch.from_numpy(windows)), size_px)
            shares_BCSS = logits_BCSS.softmax(1).cpu()
        for (y, x), share_CSS in zip(corners, shares_BCSS, strict=True):
            sums_CHW[:, y : y + size_px, x : x + size_px] += share_CSS
    whole: masks.Pixels = sums_CHW.argmax(0).to(torch.uint8).numpy()
    return whole[:height, :width]


def _corners(
    height_px: int, width_px: int, size_px: int, stride_px: int
) -> Iterator[tuple[int, int]]:
    return itertools.product(
        masks.starts(height_px, size_px, stride_px), masks.starts(width_px, size_px, stride_px)
    )


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _check_memory(wanted: int, count: int) -> None:
    if wanted > MAX_CACHE_BYTES:
        raise errors.UsageError(
            f"The tokens of {count} crops take {wanted / 1e9:.0f} GB.",
            f"--crops {count * MAX_CACHE_BYTES // wanted}",
        )
