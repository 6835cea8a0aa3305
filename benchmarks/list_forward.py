"""One forward pass a resolution, as in pathfm, against one pass over the tokens of all resolutions.

python benchmarks/list_forward.py [--arch A] [--batch B] [--rounds N] [--device D] [--bf16]

Public DINOv2 packs the tokens of global and local views into one sequence, so that norms and
linear layers run once, and keeps attention within an image by a block-diagonal mask. Here the
packed side calls attention once a resolution, which needs no mask. Both are timm's blocks without
stochastic depth, forward and back, 2 x 224 and 8 x 96 px; losses must agree. `ratio` is the packed
side's time over that of one pass a resolution: processor time on the CPU, wall time on CUDA.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pathfm_cli.model import vit

SIZES = ((2, 224), (8, 96))


def apart(backbone: Any, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every resolution through all blocks."""
    return [backbone.norm(backbone.blocks(x)) for x in tokens]


def packed(backbone: Any, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
    """All tokens through each layer together, attention a resolution at a time."""
    shapes = [x.shape for x in tokens]
    counts = [x.shape[0] * x.shape[1] for x in tokens]
    x = torch.cat([one.flatten(0, 1) for one in tokens])
    for block in backbone.blocks:
        x = x + block.ls1(_attention(block.attn, block.norm1(x), shapes, counts))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    parts = backbone.norm(x).split(counts)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _attention(
    attention: Any, x: torch.Tensor, shapes: list[torch.Size], counts: list[int]
) -> torch.Tensor:
    heads, seen = attention.num_heads, []
    for part, (images, length, width) in zip(attention.qkv(x).split(counts), shapes, strict=True):
        qkv = part.view(images, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        one = functional.scaled_dot_product_attention(*qkv)
        seen.append(one.transpose(1, 2).reshape(images * length, width))
    projected: torch.Tensor = attention.proj(torch.cat(seen))
    return projected


def side(
    forward: Callable[[Any, list[torch.Tensor]], list[torch.Tensor]],
    backbone: Any,
    images: list[torch.Tensor],
    *,
    bf16: bool,
) -> float:
    """One step forward and back; returns its loss."""
    nn.Module.zero_grad(backbone)
    device = images[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        tokens = [backbone._pos_embed(backbone.patch_embed(one)) for one in images]
        classes = torch.cat([x[:, 0] for x in forward(backbone, tokens)])
        loss = classes.float().sin().mean()
    loss.backward()
    return loss.item()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    asked = parser.parse_args()
    torch.manual_seed(0)
    backbone = vit.build(asked.arch, **vit.defaults(asked.arch)).to(asked.device)
    images = [torch.randn(n * asked.batch, 3, px, px, device=asked.device) for n, px in SIZES]
    clock = time.process_time if asked.device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {"apart": [], "packed": []}
    losses = {}
    for _ in range(1 + asked.rounds):
        for name, forward in (("apart", apart), ("packed", packed)):
            start = clock()
            losses[name] = side(forward, backbone, images, bf16=asked.bf16)
            times[name].append(clock() - start)
    torch.testing.assert_close(losses["apart"], losses["packed"], atol=1e-4, rtol=1e-3)
    best = {name: min(values[1:]) for name, values in times.items()}
    report = {
        "arch": asked.arch,
        "device": asked.device,
        "threads": torch.get_num_threads(),
        "apart_s": round(best["apart"], 3),
        "packed_s": round(best["packed"], 3),
        "ratio": round(best["packed"] / best["apart"], 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
