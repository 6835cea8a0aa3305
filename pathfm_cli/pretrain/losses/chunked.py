"""Cross-entropy against many prototypes, some rows at a time: the logits are never all there.

With 131,072 prototypes and some thousand masked tokens a step, logits, probabilities and their
gradients are a gigabyte or more each. The gradients of a chunk follow from its logits at once, so
they are taken in the forward pass: nothing is computed twice.
Legend: N rows, n of them, K prototypes, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

ELEMENTS = 2**24
"""Logits of a chunk: 64 MiB each for logits and targets, as float32."""

Rows = Callable[[slice], torch.Tensor]
"""Targets (n, K) of a slice of the rows, without gradient."""


def cross_entropy(
    features_ND: torch.Tensor,
    prototypes_KD: torch.Tensor,
    targets: Rows,
    weight_N: torch.Tensor,
    temperature: float,
    *,
    elements: int = ELEMENTS,
) -> torch.Tensor:
    """Weighted sum of cross-entropies: sum_n weight[n] * -sum_k targets[n, k] log p[n, k].

    p is the softmax of features times prototypes over `temperature`. Targets may have any sum, such
    as those of several views together. Under autocast both products run in its precision, as
    a linear layer does; the rest is float32 (float64 for float64 features).

    Args:
        features_ND: the student's, with gradient.
        prototypes_KD: rows to compare with, with gradient.
        targets: asked once for every chunk, in order.
        weight_N: float32, without gradient.
        temperature: student temperature.
        elements: logits of a chunk at most, but for a chunk of one row.

    Returns:
        A scalar; 0 without rows.
    """
    loss: torch.Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        features_ND, prototypes_KD, targets, weight_N, temperature, elements
    )
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_ND: torch.Tensor,
        prototypes_KD: torch.Tensor,
        targets: Rows,
        weight_N: torch.Tensor,
        temperature: float,
        elements: int,
    ) -> torch.Tensor:
        low = _product_type(features_ND)
        with torch.autocast(features_ND.device.type, enabled=False):
            x_ND, w_KD = features_ND.to(low), prototypes_KD.to(low)
            exact = torch.promote_types(low, torch.float32)
            loss = torch.zeros((), dtype=exact, device=x_ND.device)
            learns = any(ctx.needs_input_grad)
            grad_ND = torch.empty_like(features_ND) if learns else None
            grad_KD = torch.zeros_like(w_KD, dtype=exact) if learns else None
            size = max(elements // len(w_KD), 1)
            for start in range(0, len(x_ND), size):
                part = slice(start, start + size)
                logits_nK = functional.linear(x_ND[part], w_KD).to(exact).div_(temperature)
                targets_nK, weight_n = targets(part), weight_N[part]
                mass_n, partition_n = targets_nK.sum(dim=-1), torch.logsumexp(logits_nK, dim=-1)
                overlap_n = torch.einsum("nk,nk->n", targets_nK.to(exact), logits_nK)
                loss += torch.dot((mass_n * partition_n - overlap_n).to(exact), weight_n.to(exact))
                if grad_ND is None or grad_KD is None:
                    continue
                slope_nK = logits_nK.sub_(partition_n[:, None]).exp_().mul_(mass_n[:, None])
                slope_nK.sub_(targets_nK).mul_((weight_n / temperature)[:, None])
                slope_nK = slope_nK.to(low)
                grad_ND[part] = slope_nK @ w_KD
                if low == exact:
                    grad_KD.addmm_(slope_nK.T, x_ND[part])
                else:
                    grad_KD += slope_nK.T @ x_ND[part]
        if grad_ND is not None and grad_KD is not None:
            ctx.save_for_backward(grad_ND, grad_KD.to(prototypes_KD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_ND, grad_KD = ctx.saved_tensors
        return grad_ND * gradient, grad_KD * gradient, None, None, None, None


def _product_type(x: torch.Tensor) -> torch.dtype:
    """What a linear layer would compute in."""
    kind = x.device.type
    low: torch.dtype = (
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    )
    return low
