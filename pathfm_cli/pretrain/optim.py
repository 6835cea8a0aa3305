"""AdamW in groups, clipping, and the teacher's running mean.

Source: facebookresearch/dino, `utils.py`: `get_params_groups`, `clip_gradients`,
`cancel_gradients_last_layer`; `main_dino.py`: the EMA update. facebookresearch/dinov2,
`train/train.py`: clipping by parts. Parameters may be shared over ranks, see `shard`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from pathfm_cli.pretrain import shard


def adamw(module: nn.Module, factors: Mapping[str, float] | None = None) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in groups of one learning rate, decayed or not.

    Biases and 1-D parameters are never decayed. Learning rate and weight decay are set at every
    step by `schedule`. Without `factors` there are two groups, the decayed one first.

    Args:
        module: whose parameters.
        factors: of the learning rate, by the parameter's name; else 1.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            bare = name.endswith(".bias") or parameter.ndim == 1
            factor = 1.0 if factors is None else factors[name]
            groups.setdefault((not bare, factor), []).append(parameter)
    described = [
        {"params": parameters, "decayed": decayed, "factor": factor}
        for (decayed, factor), parameters in groups.items()
        if parameters
    ]
    return torch.optim.AdamW(described, lr=0.0, weight_decay=0.0, fused=True)


def schedule(optimiser: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set the learning rate of all groups and the weight decay of those that are decayed."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["factor"]
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


def step(optimiser: torch.optim.Optimizer, skip: torch.Tensor) -> None:
    """Take the optimiser's step unless the scalar `skip` is 1; only the device looks at it.

    A skipped step leaves parameters, moments and step counts as they were, and gradients that are
    not finite unread. This is how torch's own gradient scaler talks to a fused optimiser.
    """
    if skip.device.type == "mps":  # Its fused kernel is not known to heed the flag.
        if not skip.item():
            optimiser.step()
        return
    optimiser.found_inf = skip  # type: ignore[attr-defined]
    optimiser.step()


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale every gradient tensor down to norm `limit` (0: leave it), each for itself.

    Returns:
        The norm of all gradients together before clipping, a scalar.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = shard.norms(gradients)
    if limit:
        _scale(gradients, (limit / (norms + 1e-6)).clamp(max=1))
    total: torch.Tensor = norms.norm()
    return total


@torch.no_grad()
def clip_parts(module: nn.Module, limit: float) -> torch.Tensor:
    """As `clip`, with one norm for each part of a `networks.Network`: encoder, head, second head.

    What lies in no part, the mask token, belongs to the encoder.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            part = name.partition(".")[0] if "head." in name else "backbone"
            parts.setdefault(part, []).append(parameter.grad)
    gradients = [gradient for part in parts.values() for gradient in part]
    norms = shard.norms(gradients)
    lengths = [len(part) for part in parts.values()]
    totals = torch.stack([own.norm() for own in torch.split(norms, lengths)])
    if limit:
        factors = (limit / (totals + 1e-6)).clamp(max=1)
        each = torch.repeat_interleave(
            factors, torch.tensor(lengths, device=factors.device), output_size=len(gradients)
        )
        _scale(gradients, each)
    total: torch.Tensor = totals.norm()
    return total


def _scale(gradients: Iterable[torch.Tensor], factors: torch.Tensor) -> None:
    pairs = list(zip(map(shard.own, gradients), factors.unbind(), strict=True))
    if factors.device.type == "cpu":  # Only here it costs nothing to look.
        pairs = [(gradient, factor) for gradient, factor in pairs if factor < 1]
    for gradient, factor in pairs:
        gradient.mul_(factor)


def freeze_last_layer(module: nn.Module) -> None:
    """Drop the gradients of the prototypes, so that the optimiser leaves them alone."""
    for name, parameter in module.named_parameters():
        if "last_layer" in name:
            parameter.grad = None


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher: teacher = m * teacher + (1 - m) * student, parameter by parameter."""
    slow: list[torch.Tensor] = list(teacher.parameters())
    fast: list[torch.Tensor] = list(student.parameters())
    if all(shard.own(one) is one for one in fast):
        torch._foreach_lerp_(slow, fast, 1 - momentum)
        return
    for one, other in zip(slow, fast, strict=True):
        one.lerp_(shard.whole(other), 1 - momentum)
