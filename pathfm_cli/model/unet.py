"""The U-Net that finds tissue on a thumbnail: network, weights file, prediction on numpy arrays.

Ronneberger et al., "U-Net", MICCAI 2015, at half resolution: 2 x 2 pixels are one position of 12
channels on the way in and 4 answers on the way out, which makes it four times cheaper. Prediction
is in fp32; where CUDA's convolutions round to TF32, outlines may differ by single pixels.
"""

#   B = batch, C = channels, H, W = height and width in thumbnail pixels

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy import typing as npt
from safetensors import torch as safetensors_torch
from torch import nn

from pathfm_cli import artifacts, disk, errors
from pathfm_cli.model import device as devices

SHIPPED = Path(__file__).with_name("tissue_unet.safetensors")
"""Weights in the package; `docs/models/tissue-unet.md` says what they learned from."""
WIDTHS = (16, 32, 64, 96)
"""Channels per level."""
MAX_WIDTH = 1024
CORE_PX = 768
"""Side of a tile of the thumbnail that is answered at once."""
MARGIN_PX = 128
"""Seen around a tile; more than the network's reach, so that tiles leave no seams."""


class UNet(nn.Module):
    """Tissue or not, for every pixel of a thumbnail.

    Args:
        widths: channels per level, finest first.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.widths = widths
        inputs = (12, *widths[:-1])
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(inputs, widths, strict=True))
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.up = nn.ModuleList(_block(fine + coarse, fine) for fine, coarse in pairs)
        self.head = nn.Conv2d(widths[0], 4, kernel_size=1)

    @property
    def stride_px(self) -> int:
        """Height and width must be multiples of this."""
        return int(2 ** len(self.widths))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, H, W) for pixels (B, 3, H, W) in [-1, 1]."""
        x = nn.functional.pixel_unshuffle(x_BCHW, 2)
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for level in range(len(self.up) - 1, -1, -1):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = self.up[level](torch.cat([kept[level], x], dim=1))
        return nn.functional.pixel_shuffle(self.head(x), 2)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, kernel_size=3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@dataclasses.dataclass(frozen=True, slots=True)
class Segmenter:
    """A network ready to answer.

    Attributes:
        module: in evaluation mode, on its device.
        mpp: resolution that it was trained for, um/px.
        id: of its weights file.
    """

    module: UNet
    mpp: float
    id: str

    def probability(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probability of tissue.

        Args:
            rgb: (H, W, 3) uint8 at `mpp`.

        Returns:
            (H, W) float32 in [0, 1].
        """
        height, width = rgb.shape[:2]
        stride = self.module.stride_px
        padding = ((0, -height % stride), (0, -width % stride), (0, 0))
        padded = np.pad(rgb, padding, mode="edge")
        answer = np.empty(padded.shape[:2], np.float32)
        for top in range(0, padded.shape[0], CORE_PX):
            for left in range(0, padded.shape[1], CORE_PX):
                y, x = max(top - MARGIN_PX, 0), max(left - MARGIN_PX, 0)
                window = padded[y : top + CORE_PX + MARGIN_PX, x : left + CORE_PX + MARGIN_PX]
                seen = self._window(window)[top - y :, left - x :][:CORE_PX, :CORE_PX]
                answer[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
        return answer[:height, :width]

    def _window(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        place = next(self.module.parameters()).device
        x_BCHW = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].to(place)
        with torch.inference_mode():
            logits = self.module(normalised(x_BCHW))
        found: npt.NDArray[np.float32] = torch.sigmoid(logits)[0, 0].cpu().numpy()
        return found


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread an operation while several thumbnails are answered side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Bring uint8 pixels to [-1, 1], float32."""
    return pixels.float() / 127.5 - 1.0


def load(path: str | os.PathLike[str] | None = None, device: str = "cpu") -> Segmenter:
    """Load a `segmenter` artifact, written by `save`.

    Args:
        path: the weights file; None means the one in the package.
        device: see `device.pick`.

    Raises:
        errors.InputError: missing, of another kind, or not the weights of this network.
        errors.UsageError: no such device.
    """
    place = devices.pick(device)
    file = Path(path or SHIPPED)
    header = artifacts.read_header(file, "segmenter")
    try:
        widths = tuple(int(width) for width in header.settings["widths"])
        if not 1 <= len(widths) <= 8 or not all(1 <= width <= MAX_WIDTH for width in widths):
            raise ValueError(f"widths {widths}")
        module = UNet(widths)
        tensors = safetensors_torch.load_file(file)
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise ValueError("a weight is not finite")
        module.load_state_dict(tensors)
        mpp = float(header.settings["mpp"])
        if not 0.5 <= mpp <= 64:
            raise ValueError(f"mpp {mpp}")
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise errors.InputError(
            f"{file} does not hold the weights of a tissue U-Net.", "pathfm mask-train makes one"
        ) from error
    return Segmenter(module.eval().to(place), mpp, header.id)


def save(path: str | os.PathLike[str], module: UNet, header: artifacts.Header) -> dict[str, Any]:
    """Write weights atomically and return the artifact's record.

    Args:
        path: final name, `*.safetensors`.
        module: its parameters are written as fp32.
        header: of the kind `segmenter`; its settings name `widths` and `mpp`.
    """
    tensors = {name: v.detach().cpu().contiguous() for name, v in module.state_dict().items()}
    with disk.atomic(path) as temporary:
        safetensors_torch.save_file(tensors, temporary, {"pathfm": header.dumps()})
    return header.record(path)


def entropy_bits(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Doubt of each pixel: binary entropy in bits, 0 where sure, 1 at a probability of 0.5."""
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    bits: npt.NDArray[np.float32] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return bits
