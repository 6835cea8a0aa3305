"""Tokens with and without a mask: timm's own, and DINOv2's preparation written out."""

import pytest
import torch

from pathfm_cli import errors
from pathfm_cli.model import vit
from pathfm_cli.pretrain import tokens


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    arch = "vit_large_patch14_reg4_dinov2"
    return vit.build(arch, img_size=56, embed_dim=16, depth=2, num_heads=2).eval()


def images(size_px=56):
    return torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


MASK = torch.zeros(2, 4, 4, dtype=torch.bool)
MASK[0, 1:3, 2:] = True


@pytest.mark.parametrize("size_px", [56, 28])
def test_without_a_mask_they_are_timm_s(backbone, size_px):
    pixels = images(size_px)
    found = tokens.tokens(backbone, pixels)
    expected = backbone.forward_features(pixels)
    assert torch.equal(found.class_ID, backbone(pixels))
    assert torch.equal(found.patches_IND, expected[:, 5:])
    assert tokens.grid(backbone, size_px) == (size_px // 14, size_px // 14)


def test_the_mask_token_comes_before_positions_class_and_registers(backbone):
    token = torch.linspace(-1, 1, 16)
    pixels = images()
    kernel = backbone.patch_embed.proj
    patches = torch.nn.functional.conv2d(pixels, kernel.weight, kernel.bias, stride=14)
    x = patches.flatten(2).transpose(1, 2)
    x[MASK.flatten(1)] = token
    x = x + backbone.pos_embed
    starts = torch.cat([backbone.cls_token, backbone.reg_token], dim=1).expand(2, -1, -1)
    x = backbone.norm(backbone.blocks(torch.cat([starts, x], dim=1)))
    found = tokens.tokens(backbone, pixels, token, MASK.flatten(1))
    torch.testing.assert_close(found.class_ID, x[:, 0])
    torch.testing.assert_close(found.patches_IND, x[:, 5:])


def test_what_is_masked_is_not_seen(backbone):
    token = torch.zeros(16)
    pixels, others = images(), images()
    others[0, :, 14:42, 28:] = 9
    before, after = (tokens.tokens(backbone, p, token, MASK.flatten(1)) for p in (pixels, others))
    assert torch.equal(before.patches_IND, after.patches_IND)
    plain = [tokens.tokens(backbone, p).class_ID for p in (pixels, others)]
    assert not torch.equal(*plain)


def test_the_mask_token_learns(backbone):
    token = torch.zeros(16, requires_grad=True)
    tokens.tokens(backbone, images(), token, MASK.flatten(1)).patches_IND.square().sum().backward()
    assert token.grad.abs().sum() > 0


def test_a_network_without_tokens_is_refused(backbone):
    tokens.check(backbone, "vit_large_patch14_reg4_dinov2")
    with pytest.raises(errors.UsageError, match="resnet18 has no class and patch tokens"):
        tokens.check(vit.build("resnet18"), "resnet18")
