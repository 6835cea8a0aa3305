"""The transform against torchvision v2, applied to one image at a time."""

import pytest
import torch

from pathfm_cli.model import shim, transform

shim.apply()
v2 = pytest.importorskip("torchvision.transforms.v2")

MEAN = (0.70322989, 0.53606487, 0.66096631)
STD = (0.21716536, 0.26081574, 0.20723464)
SIZES = [(300, 400), (96, 96), (224, 224), (256, 256), (225, 224), (768, 1024), (100, 251)]


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 10_000 + width)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def reference(image_HW3: torch.Tensor, size_px: int) -> torch.Tensor:
    steps = [
        v2.Resize(size_px, antialias=True),
        v2.CenterCrop(size_px),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    return v2.Compose(steps)(image_HW3.permute(2, 0, 1).contiguous())


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size_px", [224, 98])
def test_equals_torchvision_on_single_images(height: int, width: int, size_px: int) -> None:
    images = pictures(3, height, width)
    expected = torch.stack([reference(image, size_px) for image in images])
    torch.testing.assert_close(
        transform.prepare(images, size_px, MEAN, STD), expected, atol=2e-6, rtol=0
    )


def test_a_grey_image_becomes_known_numbers() -> None:
    image = torch.full((1, 8, 12, 3), 51, dtype=torch.uint8)
    result = transform.prepare(image, 4, (0.5, 0.4, 0.2), (0.5, 0.1, 0.2))
    assert result.shape == (1, 3, 4, 4) and result.dtype == torch.float32
    expected = torch.tensor([-0.6, -2.0, 0.0])
    torch.testing.assert_close(result[0, :, 0, 0], expected, atol=1e-6, rtol=0)


def test_sizes_may_be_mixed_and_order_stays() -> None:
    images = [pictures(1, *size)[0] for size in [(50, 60), (64, 64), (50, 60), (32, 32), (64, 64)]]
    batch = transform.prepare_mixed(images, 32, MEAN, STD, torch.device("cpu"))
    expected = torch.stack([reference(image, 32) for image in images])
    torch.testing.assert_close(batch, expected, atol=2e-6, rtol=0)


def test_the_way_of_other_devices_is_within_one_grey_level() -> None:
    images = pictures(2, 300, 280).permute(0, 3, 1, 2)
    floats = transform._resize_floats(images, (112, 104)).int()
    integers = transform._resize(images, 112, 104).int()
    assert (floats - integers).abs().max() <= 1
    assert (floats - integers).float().abs().mean() < 0.2
