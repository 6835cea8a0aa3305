"""Student and teacher: an encoder and a projection head each.

Source: facebookresearch/dino, `utils.MultiCropWrapper` and `main_dino.train_dino`;
facebookresearch/dinov2, `train/ssl_meta_arch.py`.
Legend: N images (views times batch), X of them of the first size, T patch tokens of one of those, M
masked tokens of all of those, D width, E bottleneck, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import depth, vit
from pathfm_cli.pretrain import head, objective, origin, recipe, sections, tokens
from pathfm_cli.pretrain.losses import ibot


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
            embeddings: return beside the logits what the backbone made of the first crops, (X, D).
        """
        features = []
        for number, images in enumerate(crops):
            self.branches.keep(None if kept is None else kept[number])
            features.append(self.backbone(images))
        logits_NK: torch.Tensor = self.head(torch.cat(features))
        return (logits_NK, features[0]) if embeddings else logits_NK


class Seen(NamedTuple):
    """What a `PatchNetwork` makes of its crops; a tuple, since DDP and FSDP2 look into those."""

    logits_NK: torch.Tensor
    """Of the class tokens of all crops, in order."""
    class_XD: torch.Tensor
    """Class tokens of the first crops, before the head."""
    patches_XTD: torch.Tensor
    """Their patch tokens."""
    hidden_ME: torch.Tensor | None
    """The patch head's bottleneck at the places that were asked for."""
    rows_KE: torch.Tensor | None
    """Prototypes of the patch head."""


class PatchNetwork(Network):
    """A `Network` that also looks at patch tokens, some hidden behind `mask_token`, as DINOv2's.

    The mask token lies beside the encoder, which stays timm's. It begins at zero.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: head.DinoHead,
        *,
        patches: bool,
        ibot_head: head.DinoHead | None,
    ) -> None:
        """Put it together.

        Args:
            backbone: one that `tokens.check` takes.
            projection: the head of class tokens.
            patches: whether there is a patch objective, and so a mask token.
            ibot_head: the head of patch tokens; None: they share `projection`.
        """
        super().__init__(backbone, projection)
        self.ibot_head = ibot_head
        width = projection.mlp.get_submodule("0").in_features
        self.mask_token = nn.Parameter(torch.zeros(1, width)) if patches else None  # type: ignore

    def forward(  # type: ignore[override]
        self,
        crops: Sequence[torch.Tensor],
        kept: Sequence[depth.Bool] | None = None,
        *,
        masked_XT: torch.Tensor | None = None,
        places_M: torch.Tensor | None = None,
    ) -> Seen:
        """Return what both heads make of all crops.

        Args:
            crops: images, one tensor a size.
            kept: as `Network.forward`.
            masked_XT: bool, the patches of the first crops that are hidden; None: none.
            places_M: patch tokens of the first crops that the patch head is to see, among all
                X * T; None: none.
        """
        seen = []
        for number, images in enumerate(crops):
            self.branches.keep(None if kept is None else kept[number])
            masked = masked_XT if number == 0 else None
            seen.append(tokens.tokens(self.backbone, images, self.mask_token, masked))
        logits_NK = self.head(torch.cat([one.class_ID for one in seen]))
        patches_XTD, hidden_ME, rows_KE = seen[0].patches_IND, None, None
        if places_M is not None:
            projection = self.ibot_head or self.head
            hidden_ME = projection.embed(ibot.select(patches_XTD, places_M))
            rows_KE = projection.last_layer.rows()
        return Seen(logits_NK, seen[0].class_ID, patches_XTD, hidden_ME, rows_KE)


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


def anchor(settings: recipe.Recipe) -> PatchNetwork | None:
    """The frozen network that gram anchoring compares with; None without it.

    Raises:
        errors.InputError, errors.UsageError: as `start`.
    """
    if not settings.loss.gram:
        return None
    network = _network(settings, 0.0)
    origin.load_anchor(settings.loss.gram_anchor, network, settings.model.arch)
    assert isinstance(network, PatchNetwork)
    return network.requires_grad_(False)


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
    backbone = _backbone(settings, drop_path_rate)
    width = getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise errors.UsageError(f"{settings.model.arch} gives no feature vector.")
    projection = _head(width, settings.head)
    if settings.method == "dino":
        return Network(backbone, projection)
    tokens.check(backbone, settings.model.arch)
    second = settings.ibot_head
    return PatchNetwork(
        backbone,
        projection,
        patches=settings.loss.ibot > 0,
        ibot_head=None if second is None else _head(width, second),
    )


def _backbone(settings: recipe.Recipe, drop_path_rate: float) -> nn.Module:
    arguments, uniform = kwargs(settings), settings.model.drop_path == "uniform"
    if drop_path_rate and not uniform:
        arguments["drop_path_rate"] = drop_path_rate
    backbone = vit.build(settings.model.arch, **arguments)
    _check_sizes(backbone, settings.crops)
    if drop_path_rate and uniform:
        for block in backbone.modules():
            if type(block) is vit.Block:
                block.drop_path1 = vit.DropPath(drop_path_rate)
                block.drop_path2 = vit.DropPath(drop_path_rate)
    return backbone


def _head(width: int, options: objective.Head) -> head.DinoHead:
    return head.DinoHead(
        width,
        prototypes=options.prototypes,
        layers=options.layers,
        hidden=options.hidden,
        bottleneck=options.bottleneck,
        norm_last_layer=options.norm_last_layer,
        batch_norm=options.batch_norm,
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
