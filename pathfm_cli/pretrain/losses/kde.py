"""KDE: lowers the density of the features, by a kernel on the sphere; an alternative to KoLeo.

Source: Wang and Isola 2020, "Understanding contrastive representation learning through alignment
and uniformity on the hypersphere"; Zimmermann et al. 2024, "Virchow2", which put it in the place of
KoLeo because pathology patches are often near duplicates. Legend: G global views, B batch, D width,
R images of all ranks.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from pathfm_cli.pretrain import gather


def kde(x_GBD: torch.Tensor, concentration: float, *, gathered: bool) -> torch.Tensor:
    """Sum over views of the mean log density of the images under a von Mises-Fisher kernel.

    log density of i = log 1/R sum_j exp(concentration * (cos(i, j) - 1)), with i among the j, which
    bounds the gradient at duplicates. It is 0 where all features are equal, negative elsewhere, and
    minimising it repels: the estimated entropy is minus this value. All of it is float32.

    Args:
        x_GBD: the student's features of the global views, before the head.
        concentration: of the kernel, above 0.
        gathered: the density of the images of all ranks, so that the ranks' mean is the value of
            one process with the whole batch; else of this rank's alone.

    Returns:
        A float32 scalar.
    """
    with torch.autocast(x_GBD.device.type, enabled=False):
        views = [_view(x_BD, concentration, gathered) for x_BD in x_GBD.float()]
        return torch.stack(views).sum()


def _view(x_BD: torch.Tensor, concentration: float, gathered: bool) -> torch.Tensor:
    own_BD = functional.normalize(x_BD, dim=-1)
    all_RD, _ = gather.rows(own_BD) if gathered else (own_BD, 0)
    kernel_BR = concentration * (own_BD @ all_RD.T - 1)
    return torch.logsumexp(kernel_BR, dim=1).mean() - math.log(len(all_RD))
