"""Settings of what is learned: projection heads, losses, and what the student does not see."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pathfm_cli.pretrain import masks, sections

Method = Literal["dino", "dinov2"]

_check = sections.check


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A projection head; see `head.DinoHead`."""

    layers: int
    """Linear layers before the prototypes."""
    hidden: int
    """Inner width."""
    bottleneck: int
    """Width that is normalised."""
    prototypes: int
    """Output size K."""
    norm_last_layer: bool
    """Whether every prototype keeps length 1."""
    batch_norm: bool = False
    """Normalise over the batch before every GELU (dino: use_bn_in_head)."""

    def __post_init__(self) -> None:
        most = {"layers": 64, "hidden": 1 << 17, "bottleneck": 1 << 17, "prototypes": 1 << 22}
        for name, largest in most.items():
            value = getattr(self, name)
            _check(1 <= value <= largest, f"head.{name} is {value}", f"1 to {largest}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """DINO's loss and what DINOv2 adds to it; see `losses`."""

    student_temperature: float
    """Divides the student's logits."""
    teacher_temperature: float
    """Divides the teacher's logits after the ramp."""
    teacher_temperature_start: float
    """Divides the teacher's logits in the first epoch."""
    teacher_temperature_epochs: int
    """Epochs of the ramp between the two."""
    teacher_temperature_ramp: Literal["epochs", "steps"] = "epochs"
    """Whether the ramp rises once an epoch (DINO) or at every step (DINOv2)."""
    centring: Literal["ema", "sinkhorn"] = "ema"
    """What keeps the targets apart: DINO's running mean, or Sinkhorn-Knopp (dinov2 only)."""
    centre_momentum: float = 0.9
    """Share of the old centre that is kept each step."""
    sinkhorn_iterations: int = 3
    """Rounds over prototypes and samples."""
    freeze_last_layer_epochs: int
    """Epochs at the start during which the prototypes stand still."""
    ibot: float = 0.0
    """Weight of the patch objective, see `losses.ibot` (DINOv2: 1); 0: none. dinov2 only."""
    koleo: float = 0.0
    """Weight of KoLeo, which keeps embeddings apart (DINOv2: 0.1), see `losses.koleo`; 0: none."""
    kde: float = 0.0
    """Weight of the kernel density in its place (Virchow2: 0.05), see `losses.kde`; 0: none."""
    kde_concentration: float = 5.0
    """Of its kernel: the larger, the nearer the images that count."""
    spread_over: Literal["ranks", "rank"] = "ranks"
    """Which images KoLeo and KDE compare: those of all ranks, whose number then changes nothing, or
    those that a process takes at once, as DINOv2 does."""
    gram: float = 0.0
    """Weight of gram anchoring, see `losses.gram`; 0: none. dinov2 only."""
    gram_anchor: str = ""
    """Run or checkpoint whose encoder is the anchor: an earlier teacher of the same kind."""

    def __post_init__(self) -> None:
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
            _check(getattr(self, name) > 0, f"loss.{name} is {getattr(self, name)}", "above 0")
        rounds, kernel = self.sinkhorn_iterations, self.kde_concentration
        _check(1 <= rounds <= 100, f"loss.sinkhorn_iterations is {rounds}", "1 to 100")
        _check(0 < kernel <= 1000, f"loss.kde_concentration is {kernel}", "above 0, up to 1000")
        epochs = ("teacher_temperature_epochs", "freeze_last_layer_epochs")
        for name in ("ibot", "koleo", "kde", "gram", *epochs):
            _check(getattr(self, name) >= 0, f"loss.{name} is {getattr(self, name)}", "0 or more")
        value = self.centre_momentum
        _check(0 <= value < 1, f"loss.centre_momentum is {value}", "0 up to, not including, 1")
        _check(
            bool(self.gram) == bool(self.gram_anchor),
            f"loss.gram is {self.gram}, and loss.gram_anchor is {self.gram_anchor!r}",
            "both or neither: --set loss.gram=1.0 --set loss.gram_anchor=run1/",
        )

    @property
    def spreads(self) -> bool:
        """Whether images of a batch are compared with each other."""
        return bool(self.koleo or self.kde)


def check(method: Method, ibot_head: Head | None, loss: Loss, masking: masks.Masking) -> None:
    """See that a recipe asks of its method what that can do.

    Raises:
        errors.UsageError: it does not.
    """
    two = method == "dinov2"
    for name, value, off in (
        ("ibot", loss.ibot, 0.0),
        ("gram", loss.gram, 0.0),
        ("centring", loss.centring, "ema"),
    ):
        _check(
            two or value == off, f"loss.{name} is {value!r}, but method is dino", "a dinov2 recipe"
        )
    _check(
        not two or bool(loss.ibot or loss.gram or loss.centring == "sinkhorn"),
        "method is dinov2, but all that it adds to dino is off",
        "--set method=dino, --set loss.ibot=1.0 or --set loss.centring=sinkhorn",
    )
    share, (_, most) = masking.share, masking.ratio
    _check(
        not loss.ibot or min(share, most) > 0,
        f"loss.ibot is {loss.ibot}, but masks.share {share} of masks.ratio {most} hides nothing",
        "--set masks.share=0.5 --set masks.ratio=[0.1,0.5], or --set loss.ibot=0.0",
    )
    _check(
        ibot_head is None or loss.ibot > 0,
        "ibot_head is there, but loss.ibot is 0",
        "--set loss.ibot=1.0, or leave the table out",
    )
