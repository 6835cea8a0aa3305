"""The method DINOv2: DINO's step with hidden patches, balanced targets and spread embeddings.

Source: facebookresearch/dinov2, `train/ssl_meta_arch.py`; Oquab et al. 2023, section 4; gram
anchoring after Simeoni et al. 2025. loss = DINO over V views + iBOT at masked patches of the global
views + KoLeo (or KDE) of the student's global class tokens, each by its weight.

What depends on how a batch is shared: with `loss.centring = "sinkhorn"` targets are balanced over
all ranks but over one part of the batch at a time; `loss.spread_over` says what KoLeo and KDE see.
All else is the same for any number of ranks and parts.
Legend: V views, G global views, B batch, X = G * B, T patch tokens of a view, M masked ones of all,
K prototypes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pathfm_cli.model import device as devices
from pathfm_cli.pretrain import dino, masks, networks, place, recipe, tokens
from pathfm_cli.pretrain.losses import chunked, gram, ibot, sinkhorn
from pathfm_cli.pretrain.losses import dino as centring

_PATCH = "patch"
"""Name of the patch objective's centre, in the centre of class tokens and in `dino.Part`."""


class Dinov2(dino.Dino):
    """DINO's student, teacher and schedules, with another step."""

    def __init__(self, settings: recipe.Recipe, here: place.Place) -> None:
        super().__init__(settings, here)
        anchor = networks.anchor(settings)
        self._anchor = None if anchor is None else anchor.to(here.device)
        self._grid = tokens.grid(self.teacher.backbone, settings.crops.global_size_px)

    def _centre(self) -> nn.Module:
        loss, settings = self.settings.loss, self.settings
        if loss.centring == "sinkhorn":
            return nn.Identity()
        centre = super()._centre()
        if loss.ibot:
            prototypes = (settings.ibot_head or settings.head).prototypes
            centre.add_module(_PATCH, centring.Centre(prototypes, loss.centre_momentum))
        return centre

    def _move_centre(self, done: Sequence[dino.Part], skip: torch.Tensor) -> None:
        if self.settings.loss.centring == "sinkhorn":
            return
        super()._move_centre(done, skip)
        if self.settings.loss.ibot:
            sums = [part.centre[_PATCH] for part in done]
            total_K = torch.stack([total_K for total_K, _ in sums]).sum(dim=0)
            patch = self.centre.get_submodule(_PATCH)
            assert isinstance(patch, centring.Centre)
            patch.add_up(total_K, sum(rows for _, rows in sums), skip)

    def _part(
        self, step: int, crops: list[torch.Tensor], number: int, count: int, *, measure: bool
    ) -> dino.Part:
        loss_settings, temperature = self.settings.loss, self.temperature(step)
        batch = len(crops[0]) // dino.GLOBAL_VIEWS
        hidden = self._masks(step, batch, number, count) if loss_settings.ibot else None
        device = self.here.device
        masked_XT = None if hidden is None else _to(hidden.masked_IN, device)
        places_M = None if hidden is None else _to(hidden.places_M, device)
        with self._gathering(number, count):
            with devices.autocast(device, self.settings.train.precision):
                with torch.no_grad():
                    taught: networks.Seen = self.teacher(crops[:1], places_M=places_M)
                    patch_MK = _logits(taught)
                kept = self._kept(step, batch, number, count)
                seen: networks.Seen = self._student(
                    crops, kept, masked_XT=masked_XT, places_M=places_M
                )
                targets_XK = self._targets(taught.logits_NK, temperature, self.centre)
                targets_GBK = targets_XK(slice(None)).view(dino.GLOBAL_VIEWS, batch, -1)
                loss = self._class_loss(seen.logits_NK, targets_GBK)
                terms = self._spread(seen.class_XD.view(dino.GLOBAL_VIEWS, batch, -1))
                if hidden is not None and patch_MK is not None:
                    terms["ibot"] = self._patch_loss(seen, patch_MK, hidden, temperature)
                if self._anchor is not None:
                    with torch.no_grad():
                        held = self._anchor(crops[:1])
                    terms["gram"] = gram.gram(seen.patches_XTD, held.patches_XTD)
            self._backward(loss, terms, count)
        centre = {}
        if loss_settings.centring == "ema":
            centre["class"] = _sum(taught.logits_NK)
            if patch_MK is not None:
                centre[_PATCH] = _sum(patch_MK)
        return self._left(loss, terms, centre, targets_GBK, measure=measure)

    def _patch_loss(
        self,
        seen: networks.Seen,
        patch_MK: torch.Tensor,
        hidden: masks.Masks,
        temperature: float,
    ) -> torch.Tensor:
        assert seen.hidden_ME is not None and seen.rows_KE is not None
        centre = None
        if self.settings.loss.centring == "ema":
            centre = self.centre.get_submodule(_PATCH)
        return ibot.patch_loss(
            seen.hidden_ME,
            seen.rows_KE,
            self._targets(patch_MK, temperature, centre),
            _to(hidden.weight_M, self.here.device),
            len(hidden.masked_IN),
            self.settings.loss.student_temperature,
        )

    def _targets(
        self, logits_NK: torch.Tensor, temperature: float, centre: nn.Module | None
    ) -> chunked.Rows:
        """The teacher's probabilities, some rows at a time."""
        if isinstance(centre, centring.Centre):
            return lambda part: centre.targets(logits_NK[part], temperature)
        iterations = self.settings.loss.sinkhorn_iterations
        return sinkhorn.balance(logits_NK, temperature, iterations).rows

    def _masks(self, step: int, batch: int, number: int, count: int) -> masks.Masks:
        """What the student does not see of the part `number` of `count` of this rank."""
        whole = self.settings.train.batch_size
        place = self.here.rank * count + number
        indices_B = step * whole + place * batch + np.arange(batch)
        settings = self.settings
        return masks.masks(settings.masks, settings.train.seed, indices_B, whole, self._grid)


def _logits(seen: networks.Seen) -> torch.Tensor | None:
    """Logits (M, K) of the patch head."""
    if seen.hidden_ME is None or seen.rows_KE is None:
        return None
    return nn.functional.linear(seen.hidden_ME, seen.rows_KE)


def _sum(logits_NK: torch.Tensor) -> tuple[torch.Tensor, int]:
    return logits_NK.float().sum(dim=0), len(logits_NK)


def _to(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
