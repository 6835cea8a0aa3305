"""The projection head against torch's own weight normalisation and DINO's layout."""

import torch

from pathfm_cli.pretrain import head


def small(**changes):
    torch.manual_seed(0)
    return head.DinoHead(12, **{"prototypes": 40, "hidden": 16, "bottleneck": 8, **changes})


def test_forward_equals_torchs_weight_norm():
    ours = small(norm_last_layer=False)
    with torch.no_grad():
        ours.last_layer.weight_g.uniform_(0.5, 2)
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 40, bias=False))
    layer.parametrizations.weight.original0.data.copy_(ours.last_layer.weight_g)
    layer.parametrizations.weight.original1.data.copy_(ours.last_layer.weight_v)
    x = torch.randn(5, 12)
    hidden = x
    for number in (0, 2, 4):
        weight, bias = ours.mlp[number].weight, ours.mlp[number].bias
        hidden = hidden @ weight.T + bias
        if number < 4:
            hidden = torch.nn.functional.gelu(hidden)
    hidden = hidden / hidden.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(ours(x), layer(hidden))


def test_gradients_equal_torchs_weight_norm():
    ours = small(norm_last_layer=False).last_layer
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 40, bias=False))
    layer.parametrizations.weight.original0.data.copy_(ours.weight_g)
    layer.parametrizations.weight.original1.data.copy_(ours.weight_v)
    x = torch.randn(5, 8)
    ours(x).square().sum().backward()
    layer(x).square().sum().backward()
    torch.testing.assert_close(ours.weight_v.grad, layer.parametrizations.weight.original1.grad)
    torch.testing.assert_close(ours.weight_g.grad, layer.parametrizations.weight.original0.grad)


def test_names_and_shapes_are_those_of_dinos_checkpoints():
    shapes = {name: tuple(value.shape) for name, value in small().state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (16, 12),
        "mlp.0.bias": (16,),
        "mlp.2.weight": (16, 16),
        "mlp.2.bias": (16,),
        "mlp.4.weight": (8, 16),
        "mlp.4.bias": (8,),
        "last_layer.weight_g": (40, 1),
        "last_layer.weight_v": (40, 8),
    }


def test_norm_last_layer_keeps_prototypes_at_length_one():
    fixed, free = small().last_layer, small(norm_last_layer=False).last_layer
    assert not fixed.weight_g.requires_grad
    assert free.weight_g.requires_grad
    assert (fixed.weight_g == 1).all()
    assert fixed(torch.eye(8)).square().sum(dim=0).allclose(torch.ones(40), atol=1e-5)


def test_first_weights_are_truncated_normal_with_zero_bias():
    torch.manual_seed(0)
    wide = head.DinoHead(256, prototypes=4, hidden=512, bottleneck=64)
    assert 0.018 < wide.mlp[0].weight.std() < 0.022
    assert (wide.mlp[0].bias == 0).all()


def test_one_layer_is_a_linear_map():
    assert [type(layer).__name__ for layer in small(layers=1).mlp] == ["Linear"]


def test_batch_norm_stands_before_every_gelu():
    ours = small(batch_norm=True)
    kinds = [type(layer).__name__ for layer in ours.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    x = torch.randn(6, 12)
    hidden = x
    for number in (0, 3):
        hidden = hidden @ ours.mlp[number].weight.T + ours.mlp[number].bias
        variance = hidden.var(dim=0, unbiased=False)
        hidden = (hidden - hidden.mean(dim=0)) / (variance + 1e-5).sqrt()
        hidden = torch.nn.functional.gelu(hidden)
    hidden = hidden @ ours.mlp[6].weight.T + ours.mlp[6].bias
    expected = ours.last_layer(hidden / hidden.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(ours(x), expected)
