"""Resampling and blur against Pillow, torchvision and SciPy's definitions."""

import numpy as np
import pytest
import torch
from PIL import Image

from pathfm_cli.model import shim
from pathfm_cli.pretrain import resample

shim.apply()
from torchvision.transforms.v2 import functional  # noqa: E402


def picture(side: int = 96) -> np.ndarray:
    """Smooth colour with noise on it, uint8, so that resampling has something to lose."""
    y, x = np.mgrid[:side, :side] / side
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(11 * x * y)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.3, (side, side, 3))
    return np.clip((waves + noise) * 64 + 128, 0, 255).astype(np.uint8)


def as_rows(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) to the layout `resample.apply` takes, one image."""
    return torch.from_numpy(image).float()[None].transpose(2, 3)


def run(image: np.ndarray, box: tuple[int, int, int, int], target: int, flip=(False, False)):
    left, top, width, height = (torch.tensor([float(v)]) for v in box)
    side = image.shape[0]
    columns = resample.resize(left, width, torch.tensor([flip[0]]), side, target)
    rows = resample.resize(top, height, torch.tensor([flip[1]]), side, target)
    return resample.apply(as_rows(image), rows, columns)[0]


BOXES = [
    ((0, 0, 96, 96), 32),
    ((5, 11, 60, 41), 24),
    ((30, 2, 17, 25), 48),
    ((40, 50, 56, 46), 56),
]


@pytest.mark.parametrize(("box", "target"), BOXES)
def test_equals_pillows_float_bicubic(box, target):
    image = picture()
    left, top, width, height = box
    ours = run(image, box, target)
    for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype(np.float32))
        cut = plane.crop((left, top, left + width, top + height))
        theirs = np.asarray(cut.resize((target, target), Image.Resampling.BICUBIC))
        assert np.abs(ours[channel].numpy() - theirs).max() < 1e-3


@pytest.mark.parametrize(("box", "target"), BOXES)
def test_equals_pillows_uint8_bicubic_within_rounding(box, target):
    image = picture()
    left, top, width, height = box
    ours = run(image, box, target).clamp(0, 255)
    cut = Image.fromarray(image).crop((left, top, left + width, top + height))
    theirs = np.asarray(cut.resize((target, target), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).max() < 2.0


@pytest.mark.parametrize(("box", "target"), BOXES)
def test_equals_torchvisions_antialiased_bicubic(box, target):
    image = picture()
    left, top, width, height = box
    theirs = functional.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1).float(),
        top,
        left,
        height,
        width,
        [target, target],
        interpolation=functional.InterpolationMode.BICUBIC,
        antialias=True,
    )
    torch.testing.assert_close(run(image, box, target), theirs, atol=1e-3, rtol=0)


def test_flips_are_mirror_images():
    image, box = picture(), (5, 11, 60, 41)
    plain = run(image, box, 24)
    torch.testing.assert_close(run(image, box, 24, (True, False)), plain.flip(-1))
    torch.testing.assert_close(run(image, box, 24, (False, True)), plain.flip(-2))


def test_each_image_has_its_own_matrices():
    images = torch.cat([as_rows(picture()), as_rows(picture()[::-1].copy())])
    left, width = torch.tensor([3.0, 20.0]), torch.tensor([50.0, 70.0])
    matrices = resample.resize(left, width, torch.tensor([False, True]), 96, 16)
    both = resample.apply(images, matrices, matrices)
    for i in range(2):
        one = resample.apply(images[i : i + 1], matrices[i : i + 1], matrices[i : i + 1])
        torch.testing.assert_close(both[i], one[0])


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_the_gaussian_away_from_the_edge(sigma):
    image = torch.from_numpy(picture(64)).permute(2, 0, 1).float()[None]
    matrices = resample.blur(torch.tensor([sigma]), 64, 8)
    ours = resample.apply(image.transpose(1, 2), matrices, matrices)
    theirs = functional.gaussian_blur(image, [17, 17], [sigma, sigma])
    inner = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-3, rtol=0)


def test_blur_repeats_the_edge_pixel():
    matrices = resample.blur(torch.tensor([1.0]), 5, 4)[0]
    taps = np.exp(-0.5 * np.arange(-4, 5) ** 2.0)
    taps /= taps.sum()
    assert matrices[0, 0].item() == pytest.approx(taps[:5].sum(), abs=1e-6)
    assert matrices[0, 1].item() == pytest.approx(taps[5], abs=1e-6)
    torch.testing.assert_close(matrices.sum(dim=1), torch.ones(5))
