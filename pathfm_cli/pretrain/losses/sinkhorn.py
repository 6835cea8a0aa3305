"""Sinkhorn-Knopp: targets that use every prototype equally, in the log domain.

Source: Caron et al. 2020 (SwAV), section 3.1; facebookresearch/dinov2, `sinkhorn_knopp_teacher`. It
alternates between prototypes, whose weight over all samples of all ranks is made equal, and
samples, whose weight is made 1. Legend: N samples of this rank, K prototypes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import distributed

ELEMENTS = 2**22
"""Logits that are looked at together: 16 MiB as float32, which caches hold."""


@dataclasses.dataclass(frozen=True, slots=True)
class Targets:
    """The teacher's probabilities, kept as its logits, a bias each prototype and one each sample.

    targets[n, k] = exp((logits[n, k] - peak[k]) / temperature + prototype[k] + sample[n])
    """

    logits_NK: torch.Tensor
    """As the teacher gave them, in its precision."""
    temperature: float
    peak_K: torch.Tensor
    """Largest logit of the prototype on any rank, float32."""
    prototype_K: torch.Tensor
    """float32."""
    sample_N: torch.Tensor
    """float32."""

    def rows(self, part: slice) -> torch.Tensor:
        """Targets of some samples, float32; each sums to 1."""
        bias_K, temperature = self.prototype_K, self.temperature
        log_NK = _biased(self.logits_NK[part], self.peak_K, temperature, bias_K)
        return log_NK.add_(self.sample_N[part, None]).exp_()


@torch.no_grad()
def balance(logits_NK: torch.Tensor, temperature: float, iterations: int) -> Targets:
    """Balance the teacher's logits over all ranks; every rank must ask, and may have no samples.

    What is subtracted first is the largest logit of each prototype. That changes nothing, since the
    iteration begins with the prototypes; a shift of each sample would change the result.

    Args:
        logits_NK: this rank's, finite, any floating type.
        temperature: divides them.
        iterations: of both steps, 1 or more; after the last one samples sum to 1 exactly and
            prototypes nearly equally.
    """
    samples, prototypes = logits_NK.shape
    lowest_1K = logits_NK.new_full((1, prototypes), -torch.inf)
    peak_K = torch.cat([logits_NK, lowest_1K]) if not samples else logits_NK
    peak_K = _reduce(peak_K.amax(dim=0).float(), distributed.ReduceOp.MAX)
    sample_N = torch.zeros(samples, device=logits_NK.device, dtype=torch.float32)
    prototype_K = torch.zeros_like(peak_K)
    for _ in range(iterations):
        for part in _parts(prototypes, samples):
            block_NK = _biased(logits_NK[:, part], peak_K[part], temperature, sample_N[:, None])
            prototype_K[part] = torch.logsumexp(block_NK, dim=0)
        prototype_K = -_log_total(prototype_K)
        for part in _parts(samples, prototypes):
            block_NK = _biased(logits_NK[part], peak_K, temperature, prototype_K)
            sample_N[part] = -torch.logsumexp(block_NK, dim=1)
    return Targets(logits_NK, temperature, peak_K, prototype_K, sample_N)


def _biased(
    logits_NK: torch.Tensor, peak_K: torch.Tensor, temperature: float, bias: torch.Tensor
) -> torch.Tensor:
    """(logits - peak) / temperature + bias; exact near the peak, however large the logits are."""
    below_NK = torch.sub(logits_NK, peak_K)
    return torch.add(bias, below_NK, alpha=1 / temperature, out=below_NK)


def _parts(length: int, other: int) -> Iterator[slice]:
    """Slices along one side of a matrix, about `ELEMENTS` each."""
    size = max(ELEMENTS // max(other, 1), 1)
    return (slice(start, start + size) for start in range(0, length, size))


def _log_total(log_K: torch.Tensor) -> torch.Tensor:
    """Log of the sum over ranks, given each rank's log."""
    most_K = _reduce(log_K.clone(), distributed.ReduceOp.MAX)
    return most_K + _reduce((log_K - most_K).exp(), distributed.ReduceOp.SUM).log()


def _reduce(x_K: torch.Tensor, operation: distributed.ReduceOp.RedOpType) -> torch.Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x_K, op=operation)
    return x_K
