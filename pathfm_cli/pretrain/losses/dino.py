"""DINO's self-distillation loss and its centring.

Source: facebookresearch/dino, `main_dino.py`, `DINOLoss`; Caron et al. 2021, equations 1 to 4.
Legend: V views, G global views (the first of the V), B batch, K prototypes.
"""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn import functional


def cross_entropy(
    student_VBK: torch.Tensor, targets_GBK: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean cross-entropy over all pairs of a target view and another student view.

    loss = 1 / (G (V - 1)) * sum_{g, v != g} mean_b -sum_k targets[g, b, k] log p[v, b, k], where p
    is the softmax of the student over `temperature`; a view is never compared with itself.

    Args:
        student_VBK: student logits of all views, global ones first.
        targets_GBK: teacher probabilities of the global views, without gradient.
        temperature: student temperature.

    Returns:
        A float32 scalar.
    """
    views, batch, _ = student_VBK.shape
    globals_ = targets_GBK.shape[0]
    logits_VBK = student_VBK.float() / temperature
    # The targets sum to 1, so -sum q log p = logsumexp(z) - q.z: no (V, B, K) log-softmax is kept.
    partition_V = torch.logsumexp(logits_VBK, dim=-1).mean(dim=1)
    overlap_GV = torch.einsum("gbk,vbk->gv", targets_GBK.float(), logits_VBK) / batch
    pairs_GV = partition_V - overlap_GV
    total = pairs_GV.sum() - pairs_GV.diagonal().sum()
    return total / (globals_ * (views - 1))


def entropy(targets_GBK: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the targets in nats: 0 is one-hot, ln K uniform."""
    each_GBK: torch.Tensor = torch.special.entr(targets_GBK.float())
    return each_GBK.sum(dim=-1).mean()


def marginal_entropy(targets_GBK: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the mean target over views, batch and all ranks.

    Less `entropy`, it is what the targets tell about the image: 0 if all images have the same.
    """
    mean_K = targets_GBK.float().mean(dim=(0, 1))
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean_K)
        mean_K /= distributed.get_world_size()
    total: torch.Tensor = torch.special.entr(mean_K).sum()
    return total


class Centre(nn.Module):
    """The running mean of the teacher's logits, subtracted before its softmax.

    Buffer `centre_K`, float32.
    """

    centre_K: torch.Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre_K", torch.zeros(prototypes))

    def targets(self, teacher_GBK: torch.Tensor, temperature: float) -> torch.Tensor:
        """Softmax of the centred teacher logits over `temperature`, float32, same shape."""
        return functional.softmax((teacher_GBK.float() - self.centre_K) / temperature, dim=-1)

    @torch.no_grad()
    def update(self, teacher_GBK: torch.Tensor, skip: torch.Tensor | None = None) -> None:
        """Move towards the mean of this step's logits over views, batch and all ranks.

        centre = m * centre + (1 - m) * mean; where the scalar `skip` is 1, it stays as it is.
        """
        mean_K = teacher_GBK.float().mean(dim=(0, 1))
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(mean_K)
            mean_K /= distributed.get_world_size()
        moved_K = torch.lerp(mean_K, self.centre_K, self.momentum)
        if skip is not None:
            moved_K = torch.where(skip > 0, self.centre_K, moved_K)
        self.centre_K.copy_(moved_K)
