"""Crop, resize, mirror and blur a batch as two matrix products, each image its own matrices.

A separable filter is rows @ image @ columns^T; a batch of them is two batched products, which CPUs
and GPUs do fast whatever each image's parameters are.
Legend: N images, C channels, S source side, T target side, K taps, X two axes in one.
"""

from __future__ import annotations

import torch

_BICUBIC_A = -0.5


def apply(
    images_NSCS: torch.Tensor, rows_NTS: torch.Tensor, columns_NTS: torch.Tensor
) -> torch.Tensor:
    """Filter every image by its own row and column matrix.

    Args:
        images_NSCS: images as row, channel, column: so both products are plain batched ones.
        rows_NTS: vertical filters.
        columns_NTS: horizontal filters.

    Returns:
        (N, C, T, T).
    """
    images, side, channels, _ = images_NSCS.shape
    half_NTX = torch.bmm(rows_NTS, images_NSCS.reshape(images, side, -1))
    half_NXS = half_NTX.view(images, -1, side)
    full_NXT = torch.bmm(half_NXS, columns_NTS.transpose(1, 2))
    return full_NXT.view(images, rows_NTS.shape[1], channels, -1).transpose(1, 2)


def resize(
    start_px: torch.Tensor,
    length_px: torch.Tensor,
    flip: torch.Tensor,
    source_px: int,
    target_px: int,
) -> torch.Tensor:
    """Matrices that cut a box out of an axis and resize it, antialiased bicubic as in Pillow.

    The kernel (a = -0.5) widens with the reduction; taps outside the box are left out and the rest
    renormalised, as if the box had been cut out first.

    Args:
        start_px: (N,) first source pixel of the box, float32, whole numbers.
        length_px: (N,) its length.
        flip: (N,) bool, whether the result is mirrored.
        source_px: source side S.
        target_px: target side T.

    Returns:
        (N, T, S) float32, rows sum to 1.
    """
    device = start_px.device
    target_T = torch.arange(target_px, device=device)
    target_NT = torch.where(flip[:, None], target_px - 1 - target_T, target_T)
    scale_N1 = length_px[:, None] / target_px
    centre_NT = start_px[:, None] + (target_NT + 0.5) * scale_N1
    source_S = torch.arange(source_px, device=device) + 0.5
    distance_NTS = (source_S - centre_NT[:, :, None]) / scale_N1.clamp(min=1)[:, :, None]
    outside_NS = (source_S < start_px[:, None]) | (source_S > (start_px + length_px)[:, None])
    weights_NTS = _bicubic(distance_NTS).masked_fill(outside_NS[:, None], 0)
    return weights_NTS / weights_NTS.sum(dim=-1, keepdim=True)


def blur(sigma_px: torch.Tensor, size_px: int, reach_px: int) -> torch.Tensor:
    """Matrices of a Gaussian blur, the edge pixel repeated outside.

    Args:
        sigma_px: (N,) deviation, float32, above 0.
        size_px: side T.
        reach_px: taps on either side; the same for all images, so that none depends on another.

    Returns:
        (N, T, T) float32, rows sum to 1.
    """
    place_T = torch.arange(size_px, device=sigma_px.device)
    tap_K = torch.arange(-reach_px, reach_px + 1, device=sigma_px.device)
    weights_NK = torch.exp(-0.5 * (tap_K / sigma_px[:, None]) ** 2)
    weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
    source_NTK = (place_T[:, None] + tap_K).clamp(0, size_px - 1).expand(len(sigma_px), -1, -1)
    matrices_NTT = weights_NK.new_zeros(len(sigma_px), size_px, size_px)
    return matrices_NTT.scatter_add_(2, source_NTK, weights_NK[:, None].expand(-1, size_px, -1))


def _bicubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic kernel."""
    x, a = x.abs(), _BICUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
