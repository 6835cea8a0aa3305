"""timm's vision transformer against facebookresearch/dino's, written out, at 224 px."""

import pytest
import torch
from torch.nn import functional

from pathfm_cli.model import vit


def dino_vit(state, images, *, heads, patch):
    """`VisionTransformer.forward` of DINO by its definition, over weights in its names.

    Width is that of `pos_embed`; LayerNorm has eps 1e-6, GELU is exact, queries, keys and values
    have biases, the result is the class token after the last norm.
    """
    x = functional.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch
    )
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    images_, tokens, width = x.shape

    def layer(name, value):
        return functional.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, value):
        shape = (width,)
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.layer_norm(value, shape, weight, bias, eps=1e-6)

    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for number in range(depth):
        block = f"blocks.{number}"
        qkv = layer(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = qkv.reshape(images_, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(dim=-1)
        mixed = (attention @ v).transpose(1, 2).reshape(images_, tokens, width)
        x = x + layer(f"{block}.attn.proj", mixed)
        hidden = functional.gelu(layer(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + layer(f"{block}.mlp.fc2", hidden)
    return norm("norm", x)[:, 0]


@pytest.mark.parametrize(
    ("arch", "heads", "patch"),
    [
        ("vit_small_patch16_224.dino", 6, 16),
        ("vit_small_patch8_224.dino", 6, 8),
        ("vit_base_patch16_224.dino", 12, 16),
    ],
)
def test_timms_encoder_is_dinos(arch, heads, patch):
    torch.manual_seed(0)
    ours = vit.build(arch, depth=2, img_size=224).eval()
    state = ours.state_dict()
    for name, tensor in state.items():  # fresh norms and biases are ones and zeros: they say little
        tensor.add_(0.05 * torch.randn_like(tensor)) if name != "patch_embed.proj.weight" else None
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = dino_vit(state, images, heads=heads, patch=patch)
        torch.testing.assert_close(ours(images), expected, atol=2e-5, rtol=1e-5)
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = {f"blocks.{n}.{p}.{w}" for n in (0, 1) for p in parts for w in ("weight", "bias")}
    ends = {f"{p}.{w}" for p in ("patch_embed.proj", "norm") for w in ("weight", "bias")}
    assert state.keys() == {"cls_token", "pos_embed"} | ends | blocks, "no tensor is left unused"
