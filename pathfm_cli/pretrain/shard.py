"""A large student in shares: every rank keeps a part of its weights, gradients and moments (FSDP2).

Its teacher stays whole on each rank: it is a fifth of what there is to keep, and exports and looks
need no one else. Of a network that is not shared, all functions give what is there.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import distributed, nn


def wanted(network: nn.Module, above: int, world_size: int) -> bool:
    """Whether the parameters of `network` are more than `above`, and there is someone to share."""
    return world_size > 1 and sum(p.numel() for p in network.parameters()) > above


def split(network: nn.Module, device: torch.device) -> None:
    """Share `network` over all ranks, in place, block by block; its parameters become new ones.

    Weights travel and are added up in their own precision, so that a step is DDP's but for
    rounding.
    """
    from torch.distributed import device_mesh, fsdp

    # What a network returns are parts of larger tensors, and nothing changes them in place.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(.*\) returned a view tensor")
    mesh = device_mesh.init_device_mesh(device.type, (distributed.get_world_size(),))
    blocks: Any = getattr(network.get_submodule("backbone"), "blocks", ())
    for module in (*blocks, network):
        fsdp.fully_shard(module, mesh=mesh)


def synchronise(network: nn.Module, *, last: bool) -> None:
    """Say whether the next backward pass of a shared network brings the ranks' gradients together.

    It does in the `last` part of a batch.
    """
    sharing: Any = network
    sharing.set_requires_gradient_sync(last)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be shared; every rank must ask."""
    shared: Any = tensor
    return shared.full_tensor() if _is_shared(tensor) else tensor


def own(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that may be shared; the same memory."""
    shared: Any = tensor
    return shared.to_local() if _is_shared(tensor) else tensor


def like(target: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, the same on all ranks, shared as `target` is and on its device.

    A tensor of another shape, such as a count of steps, is only moved.
    """
    tensor = tensor.to(target.device)
    if not _is_shared(target) or tensor.shape != target.shape:
        return tensor
    from torch.distributed import tensor as tensors

    shared: Any = target
    return tensors.distribute_tensor(tensor, shared.device_mesh, shared.placements)


def norms(parts: list[torch.Tensor]) -> torch.Tensor:
    """Norms of tensors, each of which may be shared, as one vector; every rank must ask."""
    found = torch.stack(torch._foreach_norm([own(part) for part in parts]))
    if parts and _is_shared(parts[0]):
        found = found.square()
        distributed.all_reduce(found)
        found = found.sqrt()
    return found


def _is_shared(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
