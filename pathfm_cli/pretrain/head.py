"""DINO's projection head.

Source: facebookresearch/dino, `vision_transformer.py`, `DINOHead`; parameter names are the same, so
the heads of its full checkpoints load. Legend: B batch, D width, K prototypes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are `weight_v / |weight_v| * weight_g`.

    The names are those of the old `torch.nn.utils.weight_norm`, as in DINO's checkpoints.
    """

    def __init__(self, width: int, prototypes: int, *, norm: bool) -> None:
        super().__init__()
        fresh = nn.Linear(width, prototypes, bias=False)
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not norm)
        self.weight_v = nn.Parameter(fresh.weight.detach())

    def rows(self) -> torch.Tensor:
        """The rows (K, D) themselves."""
        # The kernel of torch's own weight norm: one pass over the rows, and one back.
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        return functional.linear(x_BD, self.rows())


class DinoHead(nn.Module):
    """Perceptron with GELU to a bottleneck, L2 normalisation, prototypes."""

    def __init__(
        self,
        width: int,
        *,
        prototypes: int,
        layers: int = 3,
        hidden: int = 2048,
        bottleneck: int = 256,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ) -> None:
        """Initialise as DINO does: truncated normal of deviation 0.02, biases zero.

        Args:
            width: width D of the encoder's embedding.
            prototypes: output size K.
            layers: linear layers of the perceptron, at least 1.
            hidden: its inner width.
            bottleneck: its output width.
            norm_last_layer: keep the length of every prototype at 1.
            batch_norm: normalise over the batch before every GELU.
        """
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        self.mlp = nn.Sequential()
        for position, (wide, narrow) in enumerate(zip(widths, widths[1:], strict=False)):
            if position:
                if batch_norm:
                    # The head only ever trains; a skipped step must leave nothing behind.
                    self.mlp.append(nn.BatchNorm1d(wide, track_running_stats=False))
                self.mlp.append(nn.GELU())
            self.mlp.append(_linear(wide, narrow))
        self.last_layer = Prototypes(bottleneck, prototypes, norm=norm_last_layer)

    def embed(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Return what is compared with the prototypes: the bottleneck, of length 1."""
        return functional.normalize(self.mlp(x_BD), dim=-1)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) for embeddings (B, D)."""
        logits_BK: torch.Tensor = self.last_layer(self.embed(x_BD))
        return logits_BK


def _linear(wide: int, narrow: int) -> nn.Linear:
    layer = nn.Linear(wide, narrow)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
