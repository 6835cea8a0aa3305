"""uint8 images to an encoder's input, batched: the transform of the evaluation protocols.

Resize the shorter side to S (bilinear with antialias, rounded back to uint8), cut the centre S x S,
scale to 0..1, subtract the mean, divide by the deviation: `Resize`, `CenterCrop`, `ToDtype` and
`Normalize` of torchvision v2, as kaiko-eva applies them.

Shapes: B images, H x W pixels, S side of the encoder's input, 3 channels (RGB).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Channels = tuple[float, float, float]


def prepare(
    images_BHW3: torch.Tensor, image_size_px: int, mean: Channels, std: Channels
) -> torch.Tensor:
    """Turn images of one size into an encoder's input.

    Args:
        images_BHW3: (B, H, W, 3) uint8.
        image_size_px: S.
        mean: per channel, for pixels in 0..1.
        std: per channel, for pixels in 0..1.

    Returns:
        (B, 3, S, S) float32 on the device of the images.
    """
    return normalise(shrink(images_BHW3, image_size_px), mean, std)


def prepare_mixed(
    images: Sequence[torch.Tensor],
    image_size_px: int,
    mean: Channels,
    std: Channels,
    device: torch.device,
) -> torch.Tensor:
    """Turn images of different sizes into one batch; those of one size are resized together.

    Args:
        images: each (H, W, 3) uint8, on the CPU.
        image_size_px: S.
        mean: as in `prepare`.
        std: as in `prepare`.
        device: where the work is done.

    Returns:
        (B, 3, S, S) float32 on `device`, in the order of `images`.
    """
    places: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.shape, []).append(place)
    squares_BSS3 = torch.empty(
        (len(images), image_size_px, image_size_px, 3), dtype=torch.uint8, device=device
    )
    for group in places.values():
        stacked = torch.stack([images[place] for place in group])
        squares = shrink(upload(stacked, device), image_size_px).to(device)
        if len(places) == 1:
            squares_BSS3 = squares
        else:
            squares_BSS3[torch.tensor(group, device=device)] = squares
    return normalise(squares_BSS3, mean, std)


def shrink(images_BHW3: torch.Tensor, image_size_px: int) -> torch.Tensor:
    """Resize the shorter side to S and cut the centre: (B, H, W, 3) to (B, S, S, 3), uint8."""
    height, width = images_BHW3.shape[1:3]
    if (height, width) == (image_size_px, image_size_px):
        return images_BHW3
    shorter = min(height, width)
    new_height = int(image_size_px * height / shorter)
    new_width = int(image_size_px * width / shorter)
    resized_B3HW = _resize(images_BHW3.permute(0, 3, 1, 2), new_height, new_width)
    top = round((new_height - image_size_px) / 2)
    left = round((new_width - image_size_px) / 2)
    square_B3SS = resized_B3HW[:, :, top : top + image_size_px, left : left + image_size_px]
    return square_B3SS.permute(0, 2, 3, 1)


def normalise(images_BHW3: torch.Tensor, mean: Channels, std: Channels) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 with the channel statistics applied."""
    pixels_B3HW = images_BHW3.permute(0, 3, 1, 2).to(
        torch.float32, memory_format=torch.contiguous_format
    )
    mean_311 = torch.tensor(mean, device=pixels_B3HW.device).view(3, 1, 1)
    std_311 = torch.tensor(std, device=pixels_B3HW.device).view(3, 1, 1)
    return pixels_B3HW.div_(255).sub_(mean_311).div_(std_311)


def upload(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move uint8 pixels to where they are resized: CUDA, behind the running kernels, or the CPU.

    MPS has no antialiased resize.
    """
    if device.type != "cuda":
        return images.cpu()
    pinned = images if images.is_cuda else images.pin_memory()
    return pinned.to(device, non_blocking=True)


def _resize(images_B3HW: torch.Tensor, height_px: int, width_px: int) -> torch.Tensor:
    size = (height_px, width_px)
    if images_B3HW.device.type != "cpu":
        return _resize_floats(images_B3HW, size)
    return functional.interpolate(images_B3HW, size, mode="bilinear", antialias=True)


def _resize_floats(images_B3HW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Only the CPU resizes uint8 itself; elsewhere the result is rounded, as torchvision does."""
    floats = functional.interpolate(images_B3HW.float(), size, mode="bilinear", antialias=True)
    return floats.round_().to(torch.uint8)
