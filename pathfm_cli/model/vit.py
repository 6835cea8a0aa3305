"""Encoders by timm name: the only module that imports timm."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import shim

shim.apply()

import timm  # noqa: E402  (torchvision must be importable first)
from timm.data import config as data_config  # noqa: E402
from timm.layers import drop, mlp  # noqa: E402
from timm.models import vision_transformer, xcit  # noqa: E402

_LIST = 'python -c "from pathfm_cli.model import vit; print(*vit.timm.list_models())"'
Block = vision_transformer.Block
"""timm's plain block: `norm1 attn ls1 drop_path1 norm2 mlp ls2 drop_path2`."""
DropPath = drop.DropPath
"""timm's stochastic depth of a residual branch."""

_LAYERS = {"SwiGLUPacked": mlp.SwiGLUPacked}
"""Layers that timm takes as a class, by the name that a file can hold."""
_DYNAMIC_FAMILIES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """What an encoder was made to see: side in pixels, channel mean and deviation in 0..1."""

    image_size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build(arch: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build an encoder without a classifier, as `timm.create_model` does.

    Vision transformers take images of any size that is a multiple of the patch size.

    Args:
        arch: a timm name (`vit_small_patch16_224`, with or without a pretrained tag), or
            `hf-hub:OWNER/NAME`.
        pretrained: load timm's weights (local cache, else the hub) instead of fresh ones.
        **kwargs: arguments of the architecture, such as `embed_dim`, `depth`, `num_heads`,
            `patch_size`, `img_size`, `drop_path_rate`.

    Returns:
        A module that turns (B, 3, H, W) float into (B, K) float features.

    Raises:
        errors.UsageError: unknown name, or an argument the architecture does not take.
    """
    check_known(arch)
    try:
        return _create(arch, pretrained, {**defaults(arch), **kwargs})
    except Exception as error:
        # timm checks little: a wrong argument fails somewhere in its layers.
        if pretrained and not isinstance(error, TypeError | AssertionError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise errors.UsageError(
            f"{arch} cannot be built with {_arguments(kwargs)}: {reason}.",
            "these are arguments of the timm model of that name",
        ) from error


def check_known(arch: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        errors.UsageError: it does not.
    """
    if not is_known(arch):
        close = difflib.get_close_matches(arch, timm.list_models(), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else _LIST
        raise errors.UsageError(f"timm has no model called {arch!r}.", hint)


def is_known(arch: str) -> bool:
    """Whether `arch` names a timm model, a hub repository included."""
    name, dot, _ = arch.partition(".")
    if ":" in arch or not dot:
        return ":" in arch or bool(timm.is_model(arch))
    return arch in timm.list_models(f"{name}.*", pretrained=True)


def defaults(arch: str) -> dict[str, Any]:
    """Arguments `build` adds by itself; `model.json` repeats them for plain timm."""
    name = arch.partition(".")[0]
    dynamic = ":" not in arch and timm.models.is_model_in_modules(name, _DYNAMIC_FAMILIES)
    return {"dynamic_img_size": True} if dynamic else {}


def input_of(module: nn.Module) -> Input:
    """What timm says the encoder was pretrained on."""
    config = data_config.resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
    return Input(config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]))


def prefix_tokens(module: nn.Module) -> int:
    """Class and register tokens before the patch tokens; 0 for a network without tokens."""
    return int(getattr(module, "num_prefix_tokens", 0))


def attend_plainly(module: nn.Module) -> None:
    """Let timm's attention layers multiply matrices themselves, without torch's fused kernel.

    Forward and back in bfloat16 on a CPU that has it, the fused kernel takes 1.4 times as long for
    8 images of 197 tokens (ViT-S) and twice as long for 32 of 37; in float32 it is the faster one.
    """
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # type: ignore[assignment]


def takes_any_size(module: nn.Module) -> bool:
    """Whether images may have other sides than those the network was built for.

    timm says no of XCiT, whose positions are a function of row and column and fit any grid.
    """
    config: Mapping[str, Any] = getattr(module, "pretrained_cfg", {})
    if isinstance(module, xcit.Xcit) or getattr(module, "dynamic_img_size", False):
        return True
    return not config.get("fixed_input_size", False)


def adapt(state: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """Apply timm's own conversion of foreign vision transformer weights.

    DINOv2 names become timm's, and position embeddings are resampled to the grid of `module`.
    """
    convert: Any = vision_transformer.checkpoint_filter_fn
    return dict(convert(dict(state), module))


def _create(arch: str, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
    named = {key: _LAYERS.get(value, value) for key, value in kwargs.items() if key == "mlp_layer"}
    module: nn.Module = timm.create_model(
        arch, pretrained=pretrained, num_classes=0, **{**kwargs, **named}
    )
    return module


def _arguments(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"


def width(module: nn.Module) -> int:
    """Size K of an embedding: convolutional networks may end in a layer that is no classifier."""
    width: Any = getattr(module, "head_hidden_size", None) or module.num_features
    return int(width)


def patch_px(module: nn.Module) -> int:
    """Side of a patch token in pixels; 1 where there are none."""
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", (1, 1))
    return int(patch[0]) if isinstance(patch, tuple) else 1
