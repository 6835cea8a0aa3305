"""DINO's self-distillation loss and its centring.

Source: facebookresearch/dino, `main_dino.py`, `DINOLoss`; Caron et al. 2021, equations 1 to 4.
Legend: V views, G global views (the first of the V), B batch, K prototypes.
"""

from __future__ import annotations

from typing import Any

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
    apply: Any = _CrossEntropy.apply
    loss: torch.Tensor = apply(student_VBK, targets_GBK, temperature)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """View by view, with the gradient made on the way: no float32 (V, B, K) is ever there.

    The targets sum to 1, so with z = student / temperature and the n_v targets q that a view v is
    compared with, -sum q log p = n_v logsumexp(z) - sum q.z, with gradient n_v softmax(z) - sum q.
    """

    @staticmethod
    def forward(
        ctx: Any, student_VBK: torch.Tensor, targets_GBK: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        views, batch, _ = student_VBK.shape
        globals_ = targets_GBK.shape[0]
        exact = torch.promote_types(student_VBK.dtype, torch.float32)
        targets_GBK = targets_GBK.to(exact)
        all_BK = targets_GBK.sum(dim=0)
        scale = 1 / (globals_ * (views - 1) * batch)
        loss = torch.zeros((), dtype=exact, device=student_VBK.device)
        gradient_VBK = torch.empty_like(student_VBK) if ctx.needs_input_grad[0] else None
        for view, student_BK in enumerate(student_VBK):
            others = [g for g in range(globals_) if g != view]
            q_BK = all_BK if view >= globals_ else targets_GBK[others].sum(dim=0)
            z_BK = student_BK.to(exact) / temperature
            partition_B1 = torch.logsumexp(z_BK, dim=-1, keepdim=True)
            overlap_B = torch.linalg.vecdot(q_BK, z_BK)
            loss += (len(others) * partition_B1.squeeze(-1) - overlap_B).sum() * scale
            if gradient_VBK is not None:
                p_BK = z_BK.sub_(partition_B1).exp_()
                slope = scale / temperature
                gradient_VBK[view] = p_BK.mul_(len(others) * slope).sub_(q_BK, alpha=slope)
        ctx.gradient_VBK = gradient_VBK
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient_VBK, ctx.gradient_VBK = ctx.gradient_VBK, None
        return gradient_VBK.mul_(outer), None, None


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
        self._move(mean_K, skip)

    @torch.no_grad()
    def add_up(self, total_K: torch.Tensor, rows: int, skip: torch.Tensor) -> None:
        """As `update`, for ranks that have unequal numbers of logits; without any, nothing moves.

        Args:
            total_K: sum of this rank's logits, float32.
            rows: how many there are.
            skip: as `update`.
        """
        both = torch.cat([total_K, total_K.new_tensor([float(rows)])])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(both)
        stays = torch.maximum(skip, (both[-1] == 0).to(skip.dtype))
        self._move(both[:-1] / both[-1].clamp(min=1), stays)

    def _move(self, mean_K: torch.Tensor, skip: torch.Tensor | None) -> None:
        moved_K = torch.lerp(mean_K, self.centre_K, self.momentum)
        if skip is not None:
            moved_K = torch.where(skip > 0, self.centre_K, moved_K)
        self.centre_K.copy_(moved_K)
