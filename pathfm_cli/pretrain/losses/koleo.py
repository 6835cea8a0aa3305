"""KoLeo: pushes the features of every image away from its nearest neighbour in the batch.

Source: Sablayrolles et al. 2018, "Spreading vectors for similarity search";
facebookresearch/dinov2, `loss/koleo_loss.py` and its use in `train/ssl_meta_arch.py`.
Legend: G global views, B batch, D width, R ranks.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from pathfm_cli import errors
from pathfm_cli.pretrain import gather

_EPS = 1e-8
_BELOW_ANY_COSINE = -2.0


def koleo(x_GBD: torch.Tensor, *, gathered: bool) -> torch.Tensor:
    """Sum over views of the mean over images of -log distance to the nearest other image.

    Features are brought to length 1; all of it is float32, whatever the autocast, and identical
    features have a finite gradient. Views of one image are never compared.

    Args:
        x_GBD: the student's features of the global views, before the head.
        gathered: look for the neighbour on all ranks, so that the ranks' mean is the value of one
            process with the whole batch; else on this rank alone, as DINOv2 does.

    Returns:
        A float32 scalar.

    Raises:
        errors.UsageError: there is no other image.
    """
    with torch.autocast(x_GBD.device.type, enabled=False):
        views = [_view(x_BD, gathered) for x_BD in x_GBD.float()]
        return torch.stack(views).sum()


def _view(x_BD: torch.Tensor, gathered: bool) -> torch.Tensor:
    own_BD = functional.normalize(x_BD, dim=-1, eps=_EPS)
    all_RD, first = gather.rows(own_BD) if gathered else (own_BD, 0)
    if len(all_RD) < 2:
        raise errors.UsageError(
            "KoLeo compares images, and a process has one at a time.", "use a larger batch"
        )
    nearest_B = _nearest(own_BD.detach(), all_RD.detach(), first)
    distance_B = functional.pairwise_distance(own_BD, all_RD[nearest_B], eps=_EPS)
    return -torch.log(distance_B + _EPS).mean()


def _nearest(own_BD: torch.Tensor, all_RD: torch.Tensor, first: int) -> torch.Tensor:
    """Which row of `all_RD` is nearest to each own one; `first` is the place of the own rows."""
    cosine_BR = own_BD @ all_RD.T
    cosine_BR.diagonal(offset=first).fill_(_BELOW_ANY_COSINE)
    return cosine_BR.argmax(dim=1)
