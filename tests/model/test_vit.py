"""Encoders by timm name."""

import pytest
import torch

from pathfm_cli import errors
from pathfm_cli.model import vit

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}


def test_a_small_transformer_takes_other_sizes():
    module = vit.build("vit_tiny_patch16_224", **SMALL)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 24)
    assert module(torch.zeros(2, 3, 16, 16)).shape == (2, 24)
    assert vit.prefix_tokens(module) == 1


def test_equals_timms_own_model():
    import timm

    torch.manual_seed(0)
    ours = vit.build("vit_tiny_patch16_224", **SMALL).eval()
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), plain(images))
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_convolutional_networks_have_no_tokens():
    module = vit.build("resnet18").eval()
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    assert vit.prefix_tokens(module) == 0
    assert vit.defaults("resnet18") == {}


def test_input_is_timms_unless_pathfm_trained_it():
    module = vit.build("vit_small_patch16_224.dino")
    assert vit.input_of(module).image_size_px == 224
    assert vit.input_of(module).mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("arch", "kwargs", "message", "hint"),
    [
        ("vit_smal_patch16_224", {}, "timm has no model", "did you mean vit_small_patch16_224?"),
        ("vit_small_patch16_224.dyno", {}, "timm has no model", "did you mean"),
        ("zzz", {}, "timm has no model", "list_models"),
        ("vit_tiny_patch16_224", {"heads": 2}, "cannot be built with heads=2", "arguments"),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "cannot be built with num_heads=5", "argum"),
        ("resnet18", {"depth": 2}, "cannot be built with depth=2", "arguments"),
    ],
)
def test_what_timm_cannot_build_is_a_usage_error(arch, kwargs, message, hint):
    with pytest.raises(errors.UsageError) as caught:
        vit.build(arch, **kwargs)
    assert message in str(caught.value) and hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("vit_small_patch16_224", True),
        ("vit_small_patch16_224.dino", True),
        ("hf-hub:owner/name", True),
        ("vit_small_patch16_224.dyno", False),
        ("dino", False),
    ],
)
def test_is_known(name, known):
    assert vit.is_known(name) is known


def test_adapt_resamples_positions_to_the_grid():
    source = vit.build("vit_tiny_patch16_224", **SMALL)
    target = vit.build("vit_tiny_patch16_224", **{**SMALL, "img_size": 64})
    state = vit.adapt(source.state_dict(), target)
    target.load_state_dict(state)
    assert state["pos_embed"].shape == (1, 65, 24)
    assert state["pos_embed"][:, :1].equal(source.pos_embed[:, :1])
    assert state["blocks.0.mlp.fc1.weight"].equal(source.state_dict()["blocks.0.mlp.fc1.weight"])


def test_plain_attention_is_the_same_function():
    module = vit.build("vit_tiny_patch16_224", **SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    fused = module(images)
    vit.attend_plainly(module)
    assert not any(block.attn.fused_attn for block in module.blocks)
    torch.testing.assert_close(module(images), fused, atol=1e-5, rtol=1e-5)


def test_positions_of_xcit_fit_any_size():
    module = vit.build("xcit_nano_12_p8_224", embed_dim=24, depth=1, num_heads=3).eval()
    assert vit.takes_any_size(module)
    for side_px in (32, 48):
        tokens = module.forward_features(torch.zeros(1, 3, side_px, side_px))
        assert tokens.shape == (1, 1 + (side_px // 8) ** 2, 24)
    assert not vit.takes_any_size(vit.build("swin_tiny_patch4_window7_224"))
