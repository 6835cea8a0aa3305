"""Learning rate of every parameter of a timm ViT, spelled out."""

import pytest

from pathfm_cli.model import vit
from pathfm_cli.pretrain import layers

DECAYED = {
    "backbone.cls_token": 0.5**3,
    "backbone.reg_token": 0.5**3,
    "backbone.pos_embed": 0.5**3,
    "mask_token": 0.5**3,
    "backbone.patch_embed.proj.weight": 0.2 * 0.5**3,
    "backbone.patch_embed.proj.bias": 0.2 * 0.5**3,
    "backbone.blocks.0.attn.qkv.weight": 0.5**2,
    "backbone.blocks.0.ls1.gamma": 0.5**2,
    "backbone.blocks.1.norm1.bias": 0.5,
    "backbone.blocks.1.mlp.fc2.weight": 0.5,
    "backbone.norm.weight": 1.0,
    "dino_head.mlp.0.weight": 1.0,
    "ibot_head.last_layer.weight_v": 1.0,
}


@pytest.mark.parametrize("name", DECAYED)
def test_factor(name):
    assert layers.factor(name, 2, 0.5, 0.2) == pytest.approx(DECAYED[name])


def test_no_decay_leaves_all_but_the_patch_embedding():
    for name in DECAYED:
        assert layers.factor(name, 2, 1.0, 0.2) == (0.2 if "patch_embed" in name else 1.0)


def test_block_eleven_is_not_block_one():
    assert layers.factor("backbone.blocks.11.mlp.fc1.bias", 12, 0.9, 1.0) == pytest.approx(0.9)
    assert layers.factor("backbone.blocks.1.mlp.fc1.bias", 12, 0.9, 1.0) == pytest.approx(0.9**11)


def test_every_parameter_of_the_paper_s_vit_has_its_layer():
    backbone = vit.build(
        "vit_large_patch14_reg4_dinov2", img_size=28, embed_dim=16, depth=2, num_heads=2
    )
    found = {
        f"backbone.{name}": layers.factor(f"backbone.{name}", 2, 0.5, 1.0)
        for name, _ in backbone.named_parameters()
    }
    assert {n for n, f in found.items() if f == 1} == {"backbone.norm.weight", "backbone.norm.bias"}
    first = {n for n, f in found.items() if f == 0.5**3}
    assert first == {
        *(f"backbone.{n}" for n in ("cls_token", "reg_token", "pos_embed")),
        *(f"backbone.patch_embed.proj.{n}" for n in ("weight", "bias")),
    }
