"""A small encoder as `pretrain` exports it, and the same one collapsed."""

import torch
from torch import nn

from pathfm_cli.model import export, vit

HALF = (0.5, 0.5, 0.5)
INFO = export.Info(
    arch="vit_tiny_patch16_224",
    kwargs={"depth": 2, "dynamic_img_size": True},
    image_size_px=64,
    mean=HALF,
    std=HALF,
)


def encoder() -> nn.Module:
    """Random weights that fit `INFO`."""
    return vit.build(INFO.arch, depth=2)


def collapse(module: nn.Module) -> None:
    """Let its last norm give the same numbers for every image."""
    norm = module.get_submodule("norm")
    with torch.no_grad():
        norm.get_parameter("weight").zero_()
        bias = norm.get_parameter("bias")
        bias.copy_(torch.linspace(-1, 1, len(bias)))
