"""Gram anchoring: keeps the similarities between the patches of an image where they once were.

Source: Simeoni et al. 2025, "DINOv3", section 4.2. Legend: I images, N patch tokens, D width.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def gram(student_IND: torch.Tensor, anchor_IND: torch.Tensor) -> torch.Tensor:
    """Mean over images and pairs of patches of the squared difference of their cosines.

    All of it is float32, whatever the autocast. Which way features point is free; only the angles
    between the patches of one image are held.

    Args:
        student_IND: patch tokens of the student's global views.
        anchor_IND: those of the anchor, an earlier teacher, for the same views, without gradient;
            widths may differ.

    Returns:
        A float32 scalar.
    """
    with torch.autocast(student_IND.device.type, enabled=False):
        return functional.mse_loss(_cosines(student_IND), _cosines(anchor_IND))


def _cosines(x_IND: torch.Tensor) -> torch.Tensor:
    unit_IND = functional.normalize(x_IND.float(), dim=-1)
    return unit_IND @ unit_IND.mT
