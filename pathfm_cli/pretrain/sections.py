"""Settings of a recipe's encoder, its first weights and its views, as frozen values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from pathfm_cli import errors

_MOST = {"patch_size": 1024, "embed_dim": 65536, "depth": 1024, "num_heads": 1024}
"""More of an encoder than any machine trains; a slip of the finger should not take its memory."""


def check(holds: bool, message: str, hint: str) -> None:
    """Raise a usage error about a setting unless `holds`."""
    if not holds:
        raise errors.UsageError(f"Setting {message}.", hint)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The encoder, by timm name; None keeps the architecture's own value."""

    arch: str
    """timm name, such as `vit_small_patch16_224.dino`."""
    init: str = "scratch"
    """First weights: `scratch`, a timm name with pretrained weights, a name of the zoo, a
    checkpoint file (DINO, DINOv2, iBOT, kaiko, ...) or a run of pathfm; see `origin`."""
    patch_size: int | None = None
    """Side of a token in pixels."""
    embed_dim: int | None = None
    """Width of a token."""
    depth: int | None = None
    """Number of blocks."""
    num_heads: int | None = None
    """Attention heads."""
    reg_tokens: int | None = None
    """Register tokens: they take part in attention and belong to no patch."""
    init_values: float | None = None
    """First factor of every residual branch (LayerScale; DINOv2: 1e-5)."""
    global_pool: Literal["token", "avg"] | None = None
    """What a vision transformer's embedding is: the class token, or the mean of patch tokens."""
    input: Literal["rgb", "density"] = "rgb"
    """What the encoder sees: colours, or grey optical density, see `model.density`."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block of the student."""
    drop_path: Literal["linear", "uniform"] = "linear"
    """Whether earlier blocks grow to that rate from 0 (DINO), or all have it (DINOv2)."""

    def __post_init__(self) -> None:
        check(bool(self.init.strip()), "model.init is empty", "scratch, a name or a path")
        rate = self.drop_path_rate
        check(0 <= rate < 1, f"model.drop_path_rate is {rate}", "0 up to, not including, 1")
        for name, most in _MOST.items():
            value = getattr(self, name)
            holds = value is None or 1 <= value <= most
            check(holds, f"model.{name} is {value}", f"1 to {most}")
        registers = self.reg_tokens or 0
        check(0 <= registers <= 1024, f"model.reg_tokens is {registers}", "0 to 1024")

    def kwargs(self) -> dict[str, Any]:
        """The arguments that differ from the architecture's own, for `vit.build`."""
        names = ["patch_size", "embed_dim", "depth", "num_heads", "global_pool"]
        names += ["reg_tokens", "init_values"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


Part = Literal["fresh", "keep"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What else than the encoder is taken from `model.init`; the paper is silent about all of it.

    Only a run of pathfm has everything; a full checkpoint of DINO, DINOv2 or iBOT has the heads.
    What is to be kept and is not there, or does not fit, is an error.
    """

    student: Literal["teacher", "own"] = "teacher"
    """First weights of the student's encoder: the teacher's (the EMA), or the student's own."""
    heads: Part = "fresh"
    """Projection heads: fresh ones, the same for both, or those of student and teacher."""
    centre: Part = "fresh"
    """The teacher's centre: zero, or where it was."""
    moments: Part = "fresh"
    """AdamW's moments: zero, or where they were; only of a run, with the student's own weights."""

    def __post_init__(self) -> None:
        check(
            self.moments == "fresh" or self.student == "own",
            "start.moments is 'keep', but they belong to the student's own weights",
            "--set start.student=own",
        )
        check(
            self.centre == "fresh" or self.heads == "keep",
            "start.centre is 'keep', but it belongs to the heads",
            "--set start.heads=keep",
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Crops:
    """Multi-crop: two global views and several local ones of every patch."""

    global_size_px: int
    """Side of a global view; the encoder's image size."""
    global_scale: tuple[float, float]
    """Smallest and largest share of the patch's area a global view covers."""
    local_count: int
    """Local views of a patch."""
    local_size_px: int
    """Side of a local view."""
    local_scale: tuple[float, float]
    """Smallest and largest share of the patch's area a local view covers."""
    context_scale: tuple[float, float] | None = None
    """Crops from an extended context (after Virchow2): a view is a square of its own size times a
    factor from this range, anywhere in a patch that is larger, so that shapes and sizes of cells
    stay; None: random resized crops by the two scales above."""

    def __post_init__(self) -> None:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            check(0 < low <= high <= 1, f"crops.{name} is {[low, high]}", "0 < low <= high <= 1")
        check(self.local_count >= 0, f"crops.local_count is {self.local_count}", "0 or more")
        for name in ("global_size_px", "local_size_px"):
            value = getattr(self, name)
            check(8 <= value <= 4096, f"crops.{name} is {value}", "8 to 4096 pixels")
        if self.context_scale is not None:
            low, high = self.context_scale
            check(0 < low <= high <= 8, f"crops.context_scale is {[low, high]}", "[0.9, 1.1]")

    @property
    def largest_px(self) -> int:
        """Side of the patch that the views need at least."""
        if self.context_scale is None:
            return 1
        return math.ceil(self.global_size_px * self.context_scale[1])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Chances and strengths of the changes to a view; see `augment`."""

    horizontal_flip: float
    """Chance of a left-right mirror image."""
    vertical_flip: float
    """Chance of an upside-down mirror image."""
    jitter: float
    """Chance of colour jitter."""
    brightness: float
    """Factor from 1 - x to 1 + x."""
    contrast: float
    """Factor from 1 - x to 1 + x."""
    saturation: float
    """Factor from 1 - x to 1 + x."""
    hue: float
    """Shift from -x to x, in turns of the colour wheel."""
    grey: float
    """Chance of losing all colour."""
    blur_first: float
    """Chance of a blur on the first global view."""
    blur_second: float
    """Chance of a blur on the second global view."""
    blur_local: float
    """Chance of a blur on a local view."""
    blur_sigma_px: tuple[float, float]
    """Smallest and largest deviation of the blur's Gaussian."""
    solarise_second: float
    """Chance that pixels of the second global view above one half are inverted."""
    blur_chance: Literal["of-blur", "of-none"] = "of-blur"
    """What the three chances of a blur are: of a blur, as DINO computes and DINOv2's settings say;
    or of none, as the released code of DINOv2 and DINOv3 computes (its first view is never
    blurred)."""
    rot90: float = 0.0
    """Chance of a turn by 90, 180 or 270 degrees, each as likely; 0.75: every side may be up."""
    hed: float = 0.0
    """Chance of a change of the stains: haematoxylin, eosin and DAB, apart."""
    hed_factor: float = 0.05
    """A stain's amount is multiplied by 1 - x to 1 + x."""
    hed_shift: float = 0.05
    """And -x to x is added to it: optical density, natural logarithm."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                limit = 0.5 if field.name == "hue" else 1.0
                hint = f"0 to {limit:g}"
                check(0 <= value <= limit, f"augment.{field.name} is {value}", hint)
        low, high = self.blur_sigma_px
        check(
            0 < low <= high <= 100,
            f"augment.blur_sigma_px is {[low, high]}",
            "0 < low <= high <= 100",
        )
