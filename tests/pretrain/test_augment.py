"""The batched augmentation against torchvision's functions applied to one view at a time."""

import dataclasses

import numpy as np
import pytest
import torch

from pathfm_cli.model import shim
from pathfm_cli.pretrain import augment, recipe, views

shim.apply()
from torchvision.transforms.v2 import functional  # noqa: E402

ADJUST = (
    ("brightness", functional.adjust_brightness),
    ("contrast", functional.adjust_contrast),
    ("saturation", functional.adjust_saturation),
    ("hue", functional.adjust_hue),
)


@pytest.fixture(scope="module")
def settings():
    changes = ["augment.vertical_flip=0.5", "augment.blur_sigma_px=[0.1, 1.0]", "augment.grey=0.3"]
    small = ["crops.global_size_px=48", "crops.local_size_px=24", "crops.local_count=3"]
    return recipe.load("dino-vits16", [*changes, *small, "augment.solarise_second=0.5"])


@pytest.fixture(scope="module")
def pixels():
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(10, axis=1).repeat(10, axis=2))


def one_view(pixels_SSC, drawn, b, v, size_px):
    """DINO's chain for patch b and view v, with torchvision's functions on one float image."""
    get = lambda name: getattr(drawn, name)[b, v].item()  # noqa: E731
    box = [int(get(n)) for n in ("top_px", "left_px", "height_px", "width_px")]
    image = functional.resized_crop(
        pixels_SSC.permute(2, 0, 1).float() / 255,
        *box,
        [size_px, size_px],
        interpolation=functional.InterpolationMode.BICUBIC,
        antialias=True,
    ).clamp(0, 1)
    if get("flip_x"):
        image = functional.horizontal_flip(image)
    if get("flip_y"):
        image = functional.vertical_flip(image)
    if get("jitter"):
        for number in drawn.order[b, v]:
            name, adjust = ADJUST[number]
            image = adjust(image, get(name))
    if get("grey"):
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    if get("sigma_px"):
        padded = torch.nn.functional.pad(image[None], [8] * 4, mode="replicate")
        image = functional.gaussian_blur(padded, [9, 9], [get("sigma_px")] * 2)[0, :, 8:-8, 8:-8]
    if get("solarise"):
        image = torch.where(image >= 128 / 255, 1 - image, image)
    return functional.normalize(image, [0.5] * 3, [0.5] * 3)


def test_every_view_equals_torchvision_one_by_one(settings, pixels):
    indices = np.arange(100, 112)
    ours = augment.crops(settings, pixels, indices)
    drawn = views.parameters(settings, indices, 80)
    for flag in ("flip_x", "flip_y", "jitter", "grey", "solarise"):
        assert getattr(drawn, flag).any(), f"the test must see {flag}"
    assert [tuple(part.shape) for part in ours] == [(24, 3, 48, 48), (36, 3, 24, 24)]
    worst = 0.0
    for v in range(5):
        part, offset, size = (ours[0], v, 48) if v < 2 else (ours[1], v - 2, 24)
        for b in range(12):
            difference = (part[offset * 12 + b] - one_view(pixels[b], drawn, b, v, size)).abs()
            # Solarising is a jump: rounding may put a pixel that is at the threshold either way.
            worst = max(worst, difference.flatten().kthvalue(int(difference.numel() * 0.999))[0])
    assert worst < 1e-4


def test_a_patch_has_the_same_views_in_any_batch(settings, pixels):
    together = augment.crops(settings, pixels, np.arange(12))
    apart = augment.crops(settings, pixels[5:7], np.array([5, 6]))
    torch.testing.assert_close(apart[0][2:], together[0][12 + 5 : 12 + 7], atol=1e-5, rtol=0)


def test_no_local_views_leave_one_batch(pixels):
    settings = recipe.load("tiny", ["crops.local_count=0"])
    assert [len(part) for part in augment.crops(settings, pixels, np.arange(12))] == [24]


def test_pixels_are_scaled_to_minus_one_to_one(pixels):
    still = [f"augment.{name}=0.0" for name in ("jitter", "grey", "blur_first", "blur_second")]
    settings = recipe.load("tiny", [*still, "augment.solarise_second=0.0"])
    white = torch.full_like(pixels, 255)
    parts = augment.crops(settings, white, np.arange(12))
    torch.testing.assert_close(parts[0], torch.ones_like(parts[0]))
    black = augment.crops(settings, torch.zeros_like(pixels), np.arange(12))
    torch.testing.assert_close(black[0], -torch.ones_like(parts[0]))


def test_turns_come_after_the_crop(settings, pixels):
    """Without colour changes a turned view is the plain one, turned."""
    off = {"jitter": 0.0, "grey": 0.0, "blur_first": 0.0, "blur_second": 0.0, "blur_local": 0.0}
    quiet = dataclasses.replace(settings.augment, **off, solarise_second=0.0)
    plain = dataclasses.replace(settings, augment=quiet)
    turned = dataclasses.replace(settings, augment=dataclasses.replace(quiet, rot90=0.75))
    indices = np.arange(12)
    drawn = views.parameters(turned, indices, 80)
    assert set(drawn.turns[:, :2].ravel()) == {0, 1, 2, 3}
    before, after = (augment.crops(s, pixels, indices)[0] for s in (plain, turned))
    for place, turns in enumerate(drawn.turns[:, :2].T.ravel()):
        expected = np.rot90(before[place].numpy(), turns, axes=(1, 2))
        np.testing.assert_allclose(after[place].numpy(), expected, atol=1e-6)


def test_stains_change_with_parameters_of_each_view(settings, pixels):
    off = {"jitter": 0.0, "grey": 0.0, "blur_first": 0.0, "blur_second": 0.0, "blur_local": 0.0}
    quiet = dataclasses.replace(settings.augment, **off, solarise_second=0.0)
    plain = dataclasses.replace(settings, augment=quiet)
    stains = dataclasses.replace(settings, augment=dataclasses.replace(quiet, hed=0.6))
    indices = np.arange(12)
    drawn = views.parameters(stains, indices, 80)
    before, after = (augment.crops(s, pixels, indices)[1] for s in (plain, stains))
    vectors = np.array([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for place in range(len(before)):
        v, b = divmod(place, 12)
        light = (before[place].numpy().astype(np.float64) + 1) / 2
        if drawn.hed[b, v + 2]:
            density = -np.log(np.maximum(light, 1 / 255)).transpose(1, 2, 0)
            amounts = density @ np.linalg.inv(vectors)
            amounts = amounts * drawn.hed_factor[b, v + 2] + drawn.hed_shift[b, v + 2]
            light = np.clip(np.exp(-amounts @ vectors), 0, 1).transpose(2, 0, 1)
        np.testing.assert_allclose((after[place].numpy() + 1) / 2, light, atol=5e-6)


def test_views_of_density_have_no_colour_and_no_contrast_of_their_own(settings, pixels):
    changed = dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, input="density")
    )
    indices = np.arange(12)
    plain, seen = augment.crops(settings, pixels, indices), augment.crops(changed, pixels, indices)
    for rgb, grey in zip(plain, seen, strict=True):
        # From the definition, in float64: densities of pixels in 0..255, each image standardised.
        density = -np.log((rgb.double().numpy() * 127.5 + 128.5) / 256).mean(axis=1)
        density -= density.mean(axis=(1, 2), keepdims=True)
        density /= 3 * (density.std(axis=(1, 2), ddof=1, keepdims=True) + 1e-3)
        for channel in range(3):
            np.testing.assert_allclose(grey[:, channel].numpy(), density, atol=1e-4)
