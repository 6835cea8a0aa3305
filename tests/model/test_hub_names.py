"""Checkpoints under the names of the transformers library, made from timm's by its own layout."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import hub_names, vit, weights


def as_published(module: nn.Module, *, wrapper: str, dinov2: bool) -> dict[str, torch.Tensor]:
    """timm's tensors as transformers' ViTModel or Dinov2Model stores them."""
    state = module.state_dict()
    made = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "embeddings.position_embeddings": state["pos_embed"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    mlp = ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
    for block in range(12):
        old, new = f"blocks.{block}", f"encoder.layer.{block}"
        for what in ("weight", "bias"):
            parts = state[f"{old}.attn.qkv.{what}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                made[f"{new}.attention.attention.{name}.{what}"] = part.clone()
            for theirs, ours in {
                norms[0]: "norm1",
                norms[1]: "norm2",
                mlp[0]: "mlp.fc1",
                mlp[1]: "mlp.fc2",
                "attention.output.dense": "attn.proj",
            }.items():
                made[f"{new}.{theirs}.{what}"] = state[f"{old}.{ours}.{what}"]
        if dinov2:
            for number in (1, 2):
                scale = state[f"{old}.ls{number}.gamma"]
                made[f"{new}.layer_scale{number}.lambda1"] = scale
    return {f"{wrapper}{name}": tensor for name, tensor in made.items()}


@pytest.mark.parametrize(
    ("arch", "wrapper", "dinov2"),
    [
        ("vit_tiny_patch16_224", "", False),
        ("vit_tiny_patch16_224", "vit.", False),
        ("vit_small_patch14_dinov2", "dinov2.", True),
    ],
)
def test_every_tensor_comes_back(arch: str, wrapper: str, dinov2: bool) -> None:
    torch.manual_seed(1)
    module = vit.build(arch)
    published = as_published(module, wrapper=wrapper, dinov2=dinov2)
    published[f"{wrapper}embeddings.mask_token"] = torch.zeros(1, 192)
    published["pooler.dense.weight"] = torch.zeros(4, 4)
    assert hub_names.recognise(published)
    state, dropped = hub_names.convert(published)
    assert dropped == [f"{wrapper}embeddings.mask_token", "pooler.dense.weight"]
    expected = module.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_names_of_timm_are_not_mistaken() -> None:
    assert not hub_names.recognise(
        {"cls_token": torch.zeros(1), "blocks.0.norm1.weight": torch.zeros(1)}
    )


def test_packed_swiglu_and_unknown_names() -> None:
    ones = torch.ones(2)
    state, dropped = hub_names.convert(
        {
            "encoder.layer.3.mlp.weights_in.weight": ones,
            "encoder.layer.3.mlp.weights_out.bias": ones,
            "encoder.layer.3.mlp.odd": ones,
            "embeddings.register_tokens": ones,
        }
    )
    assert dropped == []
    assert list(state) == [
        "blocks.3.mlp.fc1.weight",
        "blocks.3.mlp.fc2.bias",
        "blocks.3.mlp.odd",
        "reg_token",
    ]


def test_a_file_under_those_names_loads(tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = vit.build("vit_tiny_patch16_224")
    published = as_published(module, wrapper="", dinov2=False)
    published["pooler.dense.bias"] = torch.zeros(4)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in published.items()}, file)
    encoder = weights.load(file, arch="vit_tiny_patch16_224", device="cpu")
    assert encoder.dropped == ("pooler.dense.bias",)
    for name, tensor in module.state_dict().items():
        assert torch.equal(encoder.module.state_dict()[name], tensor), name
    del published["encoder.layer.5.attention.attention.key.weight"]
    safetensors.torch.save_file({k: v.contiguous() for k, v in published.items()}, file)
    with pytest.raises(errors.InputError, match="does not fit"):
        weights.load(file, arch="vit_tiny_patch16_224", device="cpu")
