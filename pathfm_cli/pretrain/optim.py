"""AdamW in groups, clipping of each tensor, and the teacher's running mean.

Source: facebookresearch/dino, `utils.py`: `get_params_groups`, `clip_gradients`,
`cancel_gradients_last_layer`; `main_dino.py`: the EMA update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn


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
    norms = torch.stack(torch._foreach_norm(gradients))
    if limit:
        factors = (limit / (norms + 1e-6)).clamp(max=1)
        pairs = list(zip(gradients, factors.unbind(), strict=True))
        if factors.device.type == "cpu":  # Only here it costs nothing to look.
            pairs = [(gradient, factor) for gradient, factor in pairs if factor < 1]
        for gradient, factor in pairs:
            gradient.mul_(factor)
    total: torch.Tensor = norms.norm()
    return total


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
    torch._foreach_lerp_(slow, fast, 1 - momentum)
