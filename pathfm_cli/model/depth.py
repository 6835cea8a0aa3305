"""Stochastic depth that computes only what is kept.

timm's `DropPath` computes a branch for every image and multiplies the dropped ones by zero. Here a
branch sees only the images that keep it, and its result, divided by the chance to be kept, is added
to their rows: the same function of the same choices, for less work (Oquab et al. 2023, section 5).
The choices are made on the host, so the device is never waited for.
Legend: L residual branches, N images, T tokens, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pathfm_cli.model import vit

Bool = NDArray[np.bool_]


class Branches:
    """The residual branches of a vision transformer whose depth is stochastic, in order.

    None in other networks, and in those whose blocks are not timm's plain ones; these keep timm's
    `DropPath`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        """Take over the plain blocks of `backbone` that drop paths."""
        self._blocks = [
            KeepingBlock.take_over(block, block.drop_path1.drop_prob)
            for block in backbone.modules()
            if type(block) is vit.Block and isinstance(block.drop_path1, vit.DropPath)
        ]
        self.rates_L: NDArray[np.float64] = np.repeat([block.rate for block in self._blocks], 2)
        """Chance that an image misses a branch."""

    def __len__(self) -> int:
        return len(self.rates_L)

    def keep(self, kept_LN: Bool | None) -> None:
        """Say which images keep which branch in the next forward pass; None: timm's layer draws.

        Args:
            kept_LN: one row a branch, one column an image of the next batch.
        """
        for number, block in enumerate(self._blocks):
            block.kept = None if kept_LN is None else kept_LN[2 * number : 2 * number + 2]


class KeepingBlock(vit.Block):
    """timm's plain block, which asks `kept` who passes its branches while it trains."""

    rate: float
    kept: Bool | None = None

    @classmethod
    def take_over(cls, block: vit.Block, rate: float) -> KeepingBlock:
        """Make `block` one of these, in its place."""
        block.__class__ = cls
        taken: Any = block
        taken.rate = rate
        return cast(KeepingBlock, taken)

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Return (N, T, D) as timm's block does; `kept` is for full attention only."""
        if self.kept is None or not self.training or attn_mask is not None or is_causal:
            return super().forward(x, attn_mask, is_causal)
        x = _add(x, self.kept[0], self.rate, self.attend)
        return _add(x, self.kept[1], self.rate, self.feed)

    def compile_branches(self, backend: str | Callable[..., Any]) -> None:
        """Compile what an image passes, for any number of images; a single one compiles anew."""
        for name in ("attend", "feed"):
            branch = getattr(type(self), name)
            whole = torch.compile(branch, backend=backend, dynamic=True)
            setattr(self, name, functools.partial(whole, self))

    def attend(self, x_NTD: torch.Tensor) -> torch.Tensor:
        """The first branch."""
        branch: torch.Tensor = self.ls1(self.attn(self.norm1(x_NTD)))
        return branch

    def feed(self, x_NTD: torch.Tensor) -> torch.Tensor:
        """The second branch."""
        branch: torch.Tensor = self.ls2(self.mlp(self.norm2(x_NTD)))
        return branch


def _add(
    x_NTD: torch.Tensor,
    kept_N: Bool,
    rate: float,
    branch: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`x` plus, where kept, `branch(x) / (1 - rate)`."""
    if kept_N.all():
        return torch.add(x_NTD, branch(x_NTD), alpha=1 / (1 - rate))
    # If nobody keeps it, one image passes for nothing: as with timm, all weights have a gradient.
    none = not kept_N.any()
    numbers = np.zeros(1, int) if none else np.flatnonzero(kept_N)
    rows = torch.from_numpy(numbers).to(x_NTD.device, non_blocking=True)
    some = branch(x_NTD.index_select(0, rows)).to(x_NTD.dtype)
    return x_NTD.index_add(0, rows, some, alpha=0.0 if none else 1 / (1 - rate))
