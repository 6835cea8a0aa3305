"""Patch tokens of a frozen encoder: of the crops of training, and of the windows of an image.

Legend: B = batch, N = crops, W = windows, h x w = grid of tokens, D = width, C = classes,
R = decoders, S = side of a crop in pixels.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import device as devices
from pathfm_cli.model import transform, weights
from pathfm_cli.tasks import decoder as decoders
from pathfm_cli.tasks import masks

T = TypeVar("T")
BATCH = 32
"""Crops in one forward pass."""
MAX_CACHE_BYTES = 4 << 30
"""Tokens that are kept in main memory."""
DEVICE_SHARE = 0.5
"""Share of the free memory of a CUDA device that kept tokens may take."""
MAX_SUM_FLOATS = 1 << 28
"""Class shares of one image by all decoders: 1 GB."""


@dataclasses.dataclass(frozen=True, slots=True)
class Crops:
    """Crops to train a decoder on.

    Attributes:
        tokens_NhwD: float32 on the encoder's device, or None where they would not fit.
        images_NSS3: uint8 in main memory, where the tokens are made anew for each batch, else None.
        labels_NSS: uint8 classes on the encoder's device.
        encode: turns (B, S, S, 3) into tokens.
    """

    tokens_NhwD: torch.Tensor | None
    images_NSS3: torch.Tensor | None
    labels_NSS: torch.Tensor
    encode: Callable[[torch.Tensor], torch.Tensor]

    def __len__(self) -> int:
        return len(self.labels_NSS)

    def take(self, picked_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, h, w, D) and classes (B, S, S) of crops by number."""
        where = picked_B.to(self.labels_NSS.device)
        if self.tokens_NhwD is not None:
            return self.tokens_NhwD[where], self.labels_NSS[where]
        assert self.images_NSS3 is not None
        # inference tensors cannot take part in a backward pass
        return self.encode(self.images_NSS3[picked_B.cpu()]).clone(), self.labels_NSS[where]


@dataclasses.dataclass(frozen=True, slots=True)
class Predicted:
    """What one decoder makes of an image: its whole (H, W), and each window (W, S, S), uint8."""

    whole: masks.Pixels
    windows_WSS: masks.Pixels


def encode(
    encoder: weights.Encoder, images_BSS3: torch.Tensor, features: str = "post-norm"
) -> torch.Tensor:
    """Patch tokens of square crops.

    Args:
        encoder: a vision transformer.
        images_BSS3: (B, S, S, 3) uint8.
        features: post-norm is what leaves the encoder's last norm, pre-norm what enters it.

    Returns:
        (B, h, w, D) float32 on the encoder's device.

    Raises:
        errors.UsageError: the encoder has no patch tokens, or no last norm.
    """
    forward = getattr(encoder.module, "forward_features", None)
    pixels = transform.normalise(images_BSS3.to(encoder.device), encoder.mean, encoder.std)
    before: list[torch.Tensor] = []
    hook = None
    if features == "pre-norm":
        hook = _last_norm(encoder).register_forward_pre_hook(
            lambda module, args: before.append(args[0])
        )
    try:
        with torch.inference_mode(), devices.autocast(encoder.device, encoder.precision):
            found = forward(pixels) if forward else None
    finally:
        if hook:
            hook.remove()
    if found is None or found.ndim != 3:
        raise errors.UsageError(
            f"{encoder.name} has no patch tokens to segment by.", "a vision transformer has"
        )
    patches_BND: torch.Tensor = (before[-1] if hook else found)[:, encoder.prefix_tokens :].float()
    side = math.isqrt(patches_BND.shape[1])
    return patches_BND.reshape(len(patches_BND), side, side, -1)


def gather(
    crops: Iterable[masks.Labelled],
    count: int,
    encoder: weights.Encoder,
    features: str,
    advance: Callable[[int], None],
) -> Crops:
    """Encode crops once and keep their tokens; where those do not fit, keep the pixels.

    Args:
        crops: squares of S pixels.
        count: the most that come.
        encoder: a vision transformer.
        features: as in `encode`.
        advance: called with the crops of each batch.

    Raises:
        errors.UsageError: as `encode`.
        errors.InputError: no crop came.
    """

    def run(images_BSS3: torch.Tensor) -> torch.Tensor:
        return encode(encoder, images_BSS3, features)

    tokens: list[torch.Tensor] = []
    pixels: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    keep = True
    for number, batch in enumerate(_batches(crops)):
        images = torch.from_numpy(np.stack([crop.image for crop in batch]))
        labels.append(torch.from_numpy(np.stack([crop.label for crop in batch])))
        if keep:
            found = run(images)
            if number == 0:
                keep = count * found[0].numel() * 4 <= _room(encoder.device)
            if keep:
                tokens.append(found.clone())
        if not keep:
            pixels.append(images)
        advance(len(batch))
    if not labels:
        raise errors.InputError("No image of train can be used.", "look at the paths in the table")
    return Crops(
        torch.cat(tokens) if keep else None,
        None if keep else torch.cat(pixels),
        torch.cat(labels).to(encoder.device),
        run,
    )


def predict(
    image: masks.Pixels,
    encode: Callable[[torch.Tensor], torch.Tensor],
    modules: Sequence[decoders.Decoder],
    classes: int,
    size_px: int,
    stride_px: int,
) -> list[Predicted]:
    """Class of every pixel of an image by each decoder; the windows are encoded once for all.

    In `whole` windows overlap and the shares of their classes are summed.

    Args:
        image: (H, W, 3) uint8.
        encode: turns windows (B, S, S, 3) into tokens.
        modules: R decoders.
        classes: C.
        size_px: S.
        stride_px: distance of windows.

    Raises:
        errors.SlideError: the image is too large for the sums.
    """
    height, width = image.shape[:2]
    blank = np.zeros((height, width), dtype=np.uint8)
    padded = masks.pad(masks.Labelled(image, blank), size_px).image
    if padded[..., 0].size * classes * len(modules) > MAX_SUM_FLOATS:
        raise errors.SlideError(f"{width} x {height} px are too many for {classes} classes")
    sums_RCHW = torch.zeros((len(modules), classes, *padded.shape[:2]))
    windows: list[list[npt.NDArray[np.uint8]]] = [[] for _ in modules]
    for batch in _batches(corners(padded.shape[0], padded.shape[1], size_px, stride_px)):
        pixels = np.stack([padded[y : y + size_px, x : x + size_px] for y, x in batch])
        tokens_BhwD = encode(torch.from_numpy(pixels))
        for sums_CHW, maps, module in zip(sums_RCHW, windows, modules, strict=True):
            with torch.inference_mode():
                shares_BCSS = module.shares(tokens_BhwD, size_px).cpu()
            for (y, x), share_CSS in zip(batch, shares_BCSS, strict=True):
                sums_CHW[:, y : y + size_px, x : x + size_px] += share_CSS
            maps.append(shares_BCSS.argmax(1).to(torch.uint8).numpy())
    wholes: list[Any] = [sums_CHW.argmax(0).to(torch.uint8).numpy() for sums_CHW in sums_RCHW]
    return [
        Predicted(whole[:height, :width], np.concatenate(maps))
        for whole, maps in zip(wholes, windows, strict=True)
    ]


def corners(
    height_px: int, width_px: int, size_px: int, stride_px: int
) -> Iterator[tuple[int, int]]:
    """(top, left) of the windows that cover an image, by row and column."""
    return itertools.product(
        masks.starts(height_px, size_px, stride_px), masks.starts(width_px, size_px, stride_px)
    )


def _last_norm(encoder: weights.Encoder) -> nn.Module:
    module: Any = encoder.module
    while hasattr(module, "encoder"):
        module = module.encoder
    norm = getattr(module, "norm", None)
    if not isinstance(norm, nn.Module):
        raise errors.UsageError(f"{encoder.name} has no last norm.", "--features post-norm")
    return norm


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _room(device: torch.device) -> int:
    """Bytes that kept tokens may take."""
    if device.type == "cuda":
        return int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
    return MAX_CACHE_BYTES
