"""Stochastic depth that skips work, against timm's, which multiplies by zero."""

import numpy as np
import pytest
import torch
from torch._dynamo import testing

from pathfm_cli.model import depth, vit

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 2}
KEPT = np.array(
    [
        *([True] * 4, [True, False, True, True]),  # block 1
        *([False, True, False, True], [False] * 4),  # block 2
    ]
)


class Fixed(torch.nn.Module):
    """timm's formula with the choices given."""

    def __init__(self, kept, rate):
        super().__init__()
        self.factor = torch.tensor(kept).float().view(-1, 1, 1) / (1 - rate)

    def forward(self, x):
        return x * self.factor


def pair():
    """A ViT whose blocks drop 0, 0.2 and 0.4, and the same again."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(vit.build("vit_tiny_patch16_224", **SMALL, drop_path_rate=0.4).train())
    return made


def test_only_blocks_that_drop_are_taken_over_and_no_name_changes():
    ours, plain = pair()
    branches = depth.Branches(ours)
    assert branches.rates_L == pytest.approx([0.2, 0.2, 0.4, 0.4])
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_same_choices_give_the_same_features_and_gradients():
    ours, plain = pair()
    depth.Branches(ours).keep(KEPT)
    for number, (first, second) in ((1, KEPT[:2]), (2, KEPT[2:])):
        rate = 0.2 * number
        plain.blocks[number].drop_path1 = Fixed(first, rate)
        plain.blocks[number].drop_path2 = Fixed(second, rate)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for network in (ours, plain):
        network(images).square().sum().backward()
    torch.testing.assert_close(ours(images), plain(images), atol=1e-5, rtol=1e-5)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4)


def test_a_branch_nobody_keeps_has_a_gradient_of_zero():
    ours, _ = pair()
    depth.Branches(ours).keep(KEPT)
    ours(torch.randn(4, 3, 16, 16)).sum().backward()
    assert ours.blocks[2].mlp.fc1.weight.grad.count_nonzero() == 0
    assert ours.blocks[1].mlp.fc1.weight.grad.count_nonzero() > 0


def test_dropped_images_are_not_computed():
    ours, _ = pair()
    depth.Branches(ours).keep(KEPT)
    seen = []
    for block in ours.blocks[1:]:
        for part in (block.attn, block.mlp):
            part.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    ours(torch.randn(4, 3, 16, 16))
    assert seen == [4, 3, 2, 1]


def test_in_evaluation_all_images_pass():
    ours, plain = pair()
    depth.Branches(ours).keep(KEPT)
    images = torch.randn(4, 3, 16, 16)
    assert ours.eval()(images).equal(plain.eval()(images))


def test_without_choices_timm_draws():
    ours, plain = pair()
    depth.Branches(ours).keep(None)
    images = torch.randn(4, 3, 16, 16)
    torch.manual_seed(3)
    first = ours(images)
    torch.manual_seed(3)
    assert first.equal(plain(images))


def test_networks_without_stochastic_depth_have_no_branches():
    module = vit.build("vit_tiny_patch16_224", **SMALL)
    assert len(depth.Branches(module)) == 0
    assert len(depth.Branches(vit.build("resnet18"))) == 0


def test_branches_compile_once_for_all_blocks_and_any_number_of_images():
    ours, plain = pair()
    branches = depth.Branches(ours)
    counter = testing.CompileCounter()
    for block in ours.blocks[1:]:
        block.compile_branches(counter)
    images = torch.randn(4, 3, 16, 16)
    for numbers in ((4, 4, 4, 4), (3, 2, 4, 3), (2, 4, 3, 2)):
        branches.keep(np.arange(4) < np.array(numbers)[:, None])
        ours(images)
    branches.keep(None)
    assert counter.frame_count == 2, "attention and perceptron"
    torch.testing.assert_close(ours.eval()(images), plain.eval()(images))
