"""iBOT's patch objective: the student says what the teacher sees where the student is blind.

Source: Zhou et al. 2022, "iBOT"; facebookresearch/dinov2, `loss/ibot_patch_loss.py`,
`forward_masked`. Legend: I images (global views times batch), N patch tokens of an image, M masked
tokens of all of them, D width, K prototypes.
"""

from __future__ import annotations

import torch

from pathfm_cli.pretrain.losses import chunked


def patch_loss(
    student_MD: torch.Tensor,
    prototypes_KD: torch.Tensor,
    targets: chunked.Rows,
    weight_M: torch.Tensor,
    images: int,
    temperature: float,
) -> torch.Tensor:
    """Cross-entropy at masked tokens: mean over an image's masked tokens, then over all images.

    loss = 1 / images * sum_m weight[m] * -sum_k targets[m, k] log p[m, k]. Images without a mask
    count among `images` with a loss of 0, as in DINOv2.

    Args:
        student_MD: the student's head at masked tokens before its prototypes, with gradient.
        prototypes_KD: rows of its last layer, with gradient.
        targets: the teacher's probabilities at the same tokens, unmasked.
        weight_M: 1 / masked tokens of the token's image, as `masks.Masks.weight_M`, float32.
        images: I, masked or not, of this rank.
        temperature: student temperature.

    Returns:
        A float32 scalar; 0 where nothing is masked.
    """
    return chunked.cross_entropy(student_MD, prototypes_KD, targets, weight_M / images, temperature)


def select(tokens_IND: torch.Tensor, places_M: torch.Tensor) -> torch.Tensor:
    """The masked tokens (M, D) of all images, by `masks.Masks.places_M`."""
    return tokens_IND.flatten(0, 1).index_select(0, places_M)
