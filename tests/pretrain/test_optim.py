"""AdamW groups, clipping of each tensor, EMA: by facebookresearch/dino's definitions."""

import pytest
import torch
from torch import nn

from pathfm_cli.model import vit
from pathfm_cli.pretrain import head, networks, optim


def network():
    torch.manual_seed(0)
    backbone = vit.build(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2, patch_size=16
    )
    return networks.Network(backbone, head.DinoHead(24, prototypes=16, hidden=8, bottleneck=4))


def test_decay_is_off_for_biases_and_vectors_only():
    module = network()
    groups = optim.adamw(module).param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in groups)
    assert {
        "backbone.cls_token",
        "backbone.pos_embed",
        "backbone.blocks.0.mlp.fc1.weight",
    } < decayed
    assert {"backbone.norm.weight", "backbone.blocks.0.attn.qkv.bias", "head.mlp.0.bias"} < plain
    assert "head.last_layer.weight_v" in decayed
    assert decayed | plain == set(names.values()) - {"head.last_layer.weight_g"}
    assert all(name.endswith(".bias") or ".norm" in name for name in plain)


def test_schedule_decays_only_the_first_group():
    optimiser = optim.adamw(network())
    optim.schedule(optimiser, 0.5, 0.25)
    assert [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups] == [(0.5, 0.25), (0.5, 0)]


def test_clip_scales_each_tensor_for_itself():
    long, short = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    long.grad, short.grad = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    norm = optim.clip([long, short, nn.Parameter(torch.zeros(1))], 3.0)
    assert norm.item() == pytest.approx((50**2 + 0.5**2) ** 0.5)
    torch.testing.assert_close(long.grad, torch.tensor([30.0, 40.0]) * 3 / (50 + 1e-6))
    torch.testing.assert_close(short.grad, torch.tensor([0.3, 0.4]))


def test_clip_limit_zero_leaves_gradients():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([30.0, 40.0])
    assert optim.clip([weight], 0.0).item() == 50
    assert weight.grad.tolist() == [30, 40]


def test_freeze_keeps_the_prototypes_still():
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimiser = optim.adamw(module)
    optim.schedule(optimiser, 0.1, 0.5)
    module([torch.randn(2, 3, 32, 32)]).square().sum().backward()
    optim.freeze_last_layer(module)
    optimiser.step()
    moved = {n for n, value in module.state_dict().items() if not value.equal(before[n])}
    assert "head.mlp.0.weight" in moved
    assert not any("last_layer" in name for name in moved)


def test_teacher_follows_by_the_formula():
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * teacher.weight.detach().double() + 0.1 * student.weight.detach().double()
    optim.follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.double(), expected, atol=1e-7, rtol=0)
