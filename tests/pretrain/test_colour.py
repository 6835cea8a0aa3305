"""Batched colour operations against torchvision, image by image."""

import numpy as np
import pytest
import torch

from pathfm_cli.model import shim
from pathfm_cli.pretrain import colour

shim.apply()
from torchvision.transforms.v2 import functional  # noqa: E402


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 20, 20, generator=generator)
    images[0, :, :5] = images[0, :1, :5]  # grey pixels have no hue
    images[1, 1] = images[1, 0]  # two largest channels tie
    images[2] = 0
    images[3] = 1
    return images


FACTORS = torch.tensor([0.6, 1.4, 1.0, 0.8, 1.2, 0.0])
TURNS = torch.tensor([-0.1, 0.1, 0.05, 0.5, -0.5, 0.0])


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_equal_torchvision(images, name):
    ours = getattr(colour, name)(images, FACTORS)
    theirs = getattr(functional, f"adjust_{name}")
    for i, factor in enumerate(FACTORS.tolist()):
        torch.testing.assert_close(ours[i], theirs(images[i], factor), atol=1e-6, rtol=0)


def test_hue_equals_torchvision(images):
    ours = colour.hue(images, TURNS)
    for i, turns in enumerate(TURNS.tolist()):
        theirs = functional.adjust_hue(images[i], turns)
        torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=0)


def test_hue_turns_red_to_green():
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
    green = colour.hue(red, torch.tensor([1 / 3]))
    torch.testing.assert_close(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_grey_and_solarise_equal_torchvision(images):
    theirs = functional.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(colour.grey(images), theirs, atol=1e-6, rtol=0)
    pixels = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 1, 1)
    ours = colour.solarise(pixels.float() / 255) * 255
    torch.testing.assert_close(ours.round().to(torch.uint8), functional.solarize(pixels, 128))


STAINS = {
    "haematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "dab": (0.27, 0.57, 0.78),
}


def stained(**amounts):
    """Light through stains of these amounts, float64, by Lambert and Beer."""
    density = np.zeros(3)
    for name, amount in amounts.items():
        density += amount * np.array(STAINS[name]) / np.linalg.norm(STAINS[name])
    return np.exp(-density)


def test_hed_changes_each_stain_apart():
    before = stained(haematoxylin=0.5, eosin=0.8)
    images = torch.tensor(np.stack([before, before]), dtype=torch.float32)[:, :, None, None]
    factor = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.5, 1.0]])
    shift = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.2]])
    after = colour.hed(images, factor, shift)[:, :, 0, 0].numpy()
    np.testing.assert_allclose(after[0], stained(haematoxylin=1.0, eosin=0.8), atol=1e-6)
    expected = stained(haematoxylin=0.6, eosin=0.4, dab=0.2)
    np.testing.assert_allclose(after[1], expected, atol=1e-6)


def test_hed_without_a_change_keeps_all_but_the_darkest(images):
    same = colour.hed(images, torch.ones(6, 3), torch.zeros(6, 3))
    torch.testing.assert_close(same, images.clamp(min=1 / 255), atol=2e-6, rtol=0)
    assert same.isfinite().all()
