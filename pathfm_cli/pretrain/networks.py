"""Student and teacher: an encoder and a projection head each.

Source: facebookresearch/dino, `utils.MultiCropWrapper` and `main_dino.train_dino`.
Legend: N images (views times batch), M images of one size, D width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import depth, vit
from pathfm_cli.pretrain import head, origin, recipe, sections


class Network(nn.Module):
    """An encoder `backbone` and a projection head `head`."""

    def __init__(self, backbone: nn.Module, projection: head.DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = projection
        self.branches = depth.Branches(backbone)

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the blocks of the backbone, each for itself, so all of one kind share the code.

        Of a block with stochastic depth the two branches are compiled, for any number of images:
        the choices and the rates stay outside, where they cannot make the compiler start again.
        """
        for block in getattr(self.backbone, "blocks", ()):
            if isinstance(block, depth.KeepingBlock):
                block.compile_branches(backend)
            else:
                block.compile(backend=backend)

    def forward(
        self,
        crops: Sequence[torch.Tensor],
        kept: Sequence[depth.Bool] | None = None,
        *,
        embeddings: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return logits (N, K) of all crops in order; crops of one size go through together.

        Args:
            crops: images, one tensor a size.
            kept: for each of them, which images keep which of the `branches`; None: timm's layers
                draw that themselves.
            embeddings: return beside the logits what the backbone made of the first crops, (M, D).
        """
        features = []
        for number, images in enumerate(crops):
            self.branches.keep(None if kept is None else kept[number])
            features.append(self.backbone(images))
        logits_NK: torch.Tensor = self.head(torch.cat(features))
        return (logits_NK, features[0]) if embeddings else logits_NK


def pair(settings: recipe.Recipe) -> tuple[Network, Network]:
    """Build student and teacher with their first weights, see `start`."""
    student, teacher, _ = start(settings)
    return student, teacher


def start(settings: recipe.Recipe) -> tuple[Network, Network, origin.Source | None]:
    """Build student and teacher with their first weights; also say where these came from.

    The teacher has no stochastic depth and no gradients. Unless the recipe keeps more of an earlier
    training it is a copy of the student. Fresh weights are a function of `train.seed` alone.

    Raises:
        errors.UsageError: the architecture is unknown, or does not fit the recipe.
        errors.InputError: the first weights cannot be had, or lack what is to be kept.
    """
    torch.manual_seed(settings.train.seed)
    student = _network(settings, settings.model.drop_path_rate)
    if settings.model.init == origin.SCRATCH:
        _start_class_token(student.backbone)
    teacher = _network(settings, 0.0)
    teacher.load_state_dict(student.state_dict())
    source = origin.apply(settings, student, teacher)
    return student, teacher.requires_grad_(False), source


def kwargs(settings: recipe.Recipe) -> dict[str, Any]:
    """What `timm.create_model` needs beside the name and `num_classes=0`, stochastic depth aside.

    A vision transformer's image size is that of the global views.
    """
    automatic = vit.defaults(settings.model.arch)
    size = {"img_size": settings.crops.global_size_px} if automatic else {}
    return {**automatic, **size, **settings.model.kwargs()}


def count(settings: recipe.Recipe) -> int:
    """Build the encoder without memory, to see that it can be built; return its parameters.

    Raises:
        errors.UsageError: the architecture is unknown, or does not fit the recipe.
    """
    with torch.device("meta"):
        backbone = _network(settings, settings.model.drop_path_rate).backbone
    return sum(parameter.numel() for parameter in backbone.parameters())


def _network(settings: recipe.Recipe, drop_path_rate: float) -> Network:
    arguments = kwargs(settings)
    if drop_path_rate:
        arguments["drop_path_rate"] = drop_path_rate
    backbone = vit.build(settings.model.arch, **arguments)
    _check_sizes(backbone, settings.crops)
    width = getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise errors.UsageError(f"{settings.model.arch} gives no feature vector.")
    options = settings.head
    return Network(
        backbone,
        head.DinoHead(
            width,
            prototypes=options.prototypes,
            layers=options.layers,
            hidden=options.hidden,
            bottleneck=options.bottleneck,
            norm_last_layer=options.norm_last_layer,
            batch_norm=options.batch_norm,
        ),
    )


def _check_sizes(backbone: nn.Module, crops: sections.Crops) -> None:
    embed = getattr(backbone, "patch_embed", None)
    token_px = getattr(embed, "patch_size", None)
    if not isinstance(token_px, tuple):
        return
    names = ["global_size_px", *(["local_size_px"] if crops.local_count else [])]
    for name in names:
        if getattr(crops, name) % token_px[0]:
            raise errors.UsageError(
                f"crops.{name} is {getattr(crops, name)}, no multiple of the encoder's "
                f"patch size {token_px[0]}.",
                f"--set crops.{name}={max(getattr(crops, name) // token_px[0], 1) * token_px[0]}",
            )


def _start_class_token(backbone: nn.Module) -> None:
    """Start the class token as DINO does; timm starts it at almost zero."""
    token = getattr(backbone, "cls_token", None)
    if isinstance(token, nn.Parameter):
        nn.init.trunc_normal_(token, std=0.02)
