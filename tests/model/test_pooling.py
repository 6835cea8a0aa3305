"""Class token beside the mean of the patch tokens, against timm's own tokens."""

import torch
from torch import nn

from pathfm_cli.model import pooling, vit


class Tokens(nn.Module):
    """Answers fixed tokens, whatever the image."""

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[[1.0, 2.0], [9.0, 9.0], [3.0, 5.0], [5.0, 9.0]]])


def test_registers_take_no_part_in_the_mean() -> None:
    image = torch.zeros(1, 3, 4, 4)
    found = pooling.ClassAndMean(Tokens(), prefix_tokens=2)(image)
    assert found.tolist() == [[1.0, 2.0, 4.0, 7.0]]
    assert pooling.ClassAndMean(Tokens(), 1)(image).tolist()[0][:2] == [1.0, 2.0]


def test_of_a_real_encoder() -> None:
    torch.manual_seed(0)
    module = vit.build("vit_small_patch14_reg4_dinov2", img_size=28).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        tokens = module.forward_features(pixels)
        found = pooling.ClassAndMean(module, 5)(pixels)
    assert tokens.shape == (2, 5 + 4, 384)
    torch.testing.assert_close(found[:, :384], tokens[:, 0])
    torch.testing.assert_close(found[:, 384:], tokens[:, 5:].sum(1) / 4)
