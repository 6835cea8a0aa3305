"""DINOv2's step as its paper and public code describe it, in plain PyTorch: a peer to measure with.

One timm forward a resolution, timm's drop path, `weight_norm` on the last layer, Sinkhorn-Knopp
on exponentials in float32, a log-softmax a view and a term a pair, the patch loss on whole logits,
KoLeo, clipping by `clip_grad_norm_` of each part, AdamW with a group a parameter, EMA in a loop.
Model, first weights, crops, masks, heads and schedules are those of `pathfm_cli.pretrain.dinov2`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from pathfm_cli.model import vit
from pathfm_cli.pretrain import dino, head, layers, masks, networks, recipe, tokens


class Plain:
    """The peer; patch tokens have a head of their own where the recipe has one."""

    def __init__(self, settings: recipe.Recipe, device: torch.device, precision: str) -> None:
        self.settings, self.device, self.precision = settings, device, precision
        student, teacher = networks.pair(settings)
        self.student = self._network(student, settings.model.drop_path_rate)
        self.teacher = self._network(teacher, 0.0).requires_grad_(False)
        self.grid = tokens.grid(student.backbone, settings.crops.global_size_px)
        factors = layers.factors(student, settings.optim)
        self.groups = []
        for name, parameter in self.student.named_parameters():
            bare = name.endswith(".bias") or parameter.ndim == 1
            group = {"params": [parameter], "factor": factors.get(name, 1.0), "decayed": not bare}
            self.groups.append(group)
        self.optimiser = torch.optim.AdamW(self.groups)
        self.schedules = dino.schedules(settings)

    def _network(self, ours: networks.Network, rate: float) -> nn.Module:
        """The same weights in timm's own blocks and torch's own weight norm."""
        backbone = vit.build(self.settings.model.arch, **networks.kwargs(self.settings))
        for block in backbone.blocks if rate else ():
            block.drop_path1, block.drop_path2 = vit.DropPath(rate), vit.DropPath(rate)
        backbone.load_state_dict(ours.backbone.state_dict())
        network = nn.ModuleDict({"backbone": backbone, "head": plain_head(ours.head)})
        if ours.ibot_head is not None:
            network["ibot_head"] = plain_head(ours.ibot_head)
        network.register_parameter("mask_token", nn.Parameter(ours.mask_token.detach().clone()))
        return network.to(self.device)

    def _head(self, network: nn.Module, x: torch.Tensor, name: str = "head") -> torch.Tensor:
        head = network[name if name in network else "head"]
        return head["last"](functional.normalize(head["mlp"](x), dim=-1)).float()

    def _tokens(
        self, network: nn.Module, images: torch.Tensor, masked: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        backbone = network["backbone"]
        x = backbone.patch_embed(images)
        if masked is not None:
            x = torch.where(masked.view(*x.shape[:-1], 1), network.mask_token.to(x.dtype), x)
        x = backbone.norm(backbone.blocks(backbone._pos_embed(x)))
        return x[:, 0], x[:, backbone.num_prefix_tokens :]

    def step(self, step: int, crops: list[torch.Tensor]) -> torch.Tensor:
        """One step; returns DINO's loss."""
        lr, decay, momentum, temperature = (schedule(step) for schedule in self.schedules)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
            group["weight_decay"] = decay if group["decayed"] else 0.0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, total = self._losses(step, crops, temperature)
        self.optimiser.zero_grad()
        total.backward()
        for part in (["backbone", "mask_token"], ["head"], ["ibot_head"]):
            own = [p for n, p in self.student.named_parameters() if n.partition(".")[0] in part]
            nn.utils.clip_grad_norm_(own, self.settings.optim.clip_norm)
        self.optimiser.step()
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.mul_(momentum).add_((1 - momentum) * fast)
        return loss.detach()

    def _losses(
        self, step: int, crops: list[torch.Tensor], temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        settings, batch = self.settings, self.settings.train.batch_size
        indices = [step * batch + number for number in range(batch)]
        hidden = masks.masks(settings.masks, settings.train.seed, indices, batch, self.grid)
        masked = torch.from_numpy(hidden.masked_IN).to(self.device)
        weight = torch.from_numpy(hidden.weight_M).to(self.device)
        with torch.no_grad():
            class_, patches = self._tokens(self.teacher, crops[0])
            targets = sinkhorn(self._head(self.teacher, class_), temperature)
            patch_logits = self._head(self.teacher, patches[masked], "ibot_head")
            patch_targets = sinkhorn(patch_logits, temperature)
        global_class, global_patches = self._tokens(self.student, crops[0], masked)
        classes = [global_class] + [self._tokens(self.student, images)[0] for images in crops[1:]]
        cold = settings.loss.student_temperature
        views = (self._head(self.student, torch.cat(classes)) / cold).split(batch)
        terms = [
            torch.sum(-q * functional.log_softmax(view, dim=-1), dim=-1).mean()
            for number, q in enumerate(targets.chunk(2))
            for place, view in enumerate(views)
            if place != number
        ]
        loss = sum(terms) / len(terms)
        logits = self._head(self.student, global_patches[masked], "ibot_head") / cold
        each = torch.sum(-patch_targets * functional.log_softmax(logits, dim=-1), dim=-1)
        patch_loss = (each * weight).sum() / len(masked)
        spread = sum(koleo(view) for view in global_class.float().chunk(2))
        return loss, loss + settings.loss.ibot * patch_loss + settings.loss.koleo * spread


def plain_head(ours: head.DinoHead) -> nn.ModuleDict:
    """The same weights with torch's own weight norm."""
    last = nn.Linear(*reversed(ours.last_layer.weight_v.shape), bias=False)
    last = parametrizations.weight_norm(last)
    last.parametrizations.weight.original0.data.fill_(1)
    last.parametrizations.weight.original1.data.copy_(ours.last_layer.weight_v)
    return nn.ModuleDict({"mlp": ours.mlp, "last": last})


def sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Three rounds on exponentials; (N, K)."""
    q = torch.exp((logits - logits.max()) / temperature).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def koleo(x: torch.Tensor) -> torch.Tensor:
    """Mean of -log of the distance to the nearest other row."""
    x = functional.normalize(x, dim=-1, eps=1e-8)
    cosine = x @ x.T
    cosine.fill_diagonal_(-1)
    return -torch.log(functional.pairwise_distance(x, x[cosine.argmax(dim=1)], eps=1e-8)).mean()
