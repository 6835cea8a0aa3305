import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pathfm_cli.data import otsu

GLASS = (242, 242, 243)
PINK = (225, 150, 190)
PURPLE = (130, 80, 150)


def painted(colour: tuple[int, int, int] = GLASS, size: int = 200) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def noisy(image: Image.Image) -> np.ndarray:
    """What a scanner delivers: a little noise, then JPEG."""
    noise = np.random.default_rng(0).normal(0, 2, (*image.size[::-1], 3))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer))


def test_optical_density_is_against_the_glass_of_the_slide() -> None:
    rgb = np.full((10, 10, 3), 240, dtype=np.uint8)
    rgb[0, 0] = (24, 120, 240)
    rgb[0, 1] = (0, 10, 255)
    density = otsu.optical_density(rgb)
    assert density.dtype == np.float32
    np.testing.assert_allclose(density[0, 0], [1.0, np.log10(2), 0.0], atol=1e-6)
    np.testing.assert_allclose(density[0, 1], [np.log10(24), np.log10(24), 0.0], atol=1e-6)
    assert density[5, 5].tolist() == [0, 0, 0]


def test_glass_has_a_default_where_there_is_none() -> None:
    rgb = np.full((10, 10, 3), 100, dtype=np.uint8)
    np.testing.assert_allclose(otsu.optical_density(rgb), np.log10(245 / 100), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_threshold_minimises_the_variance_within_the_two_classes(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.concatenate([random.normal(0.2, 0.05, 500), random.normal(0.6, 0.1, 200)])
    values = np.clip(np.round(values * 256 - 0.5) + 0.5, 0.5, 255.5) / 256

    def within(cut: float) -> float:
        parts = values[values < cut], values[values >= cut]
        return sum(part.size * part.var() for part in parts if part.size)

    cuts = np.arange(1, 256) / 256
    best = min(within(cut) for cut in cuts)
    assert within(otsu.otsu_threshold(values, 1.0)) == pytest.approx(best)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.7]])
def test_threshold_of_a_single_class_is_zero(values: list[float]) -> None:
    assert otsu.otsu_threshold(np.array(values), 1.0) == 0.0


def test_tissue_is_found_to_a_pixel_or_two() -> None:
    image = painted()
    pen = ImageDraw.Draw(image)
    pen.rectangle((40, 50, 119, 149), PINK)
    pen.rectangle((60, 70, 89, 99), PURPLE)
    found = otsu.foreground(noisy(image), 8.0)
    assert found.shape == (200, 200) and found.dtype == np.bool_
    assert found[54:146, 44:116].all()
    outside = found.copy()
    outside[46:154, 36:124] = False
    assert outside.mean() < 1e-3


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (225, 218, 222)])
def test_blank_glass_has_no_tissue(glass: tuple[int, int, int]) -> None:
    assert otsu.foreground(noisy(painted(glass)), 8.0).mean() < 0.002


def test_a_slide_without_glass_is_all_tissue() -> None:
    image = painted(PINK)
    pen = ImageDraw.Draw(image)
    for x in range(0, 200, 20):
        pen.ellipse((x, x, x + 30, x + 30), PURPLE)
    assert otsu.foreground(noisy(image), 8.0).all()


def test_faint_tissue_beside_strong_tissue_is_kept() -> None:
    image = painted()
    pen = ImageDraw.Draw(image)
    pen.rectangle((20, 20, 90, 180), PURPLE)
    pen.rectangle((110, 20, 180, 180), (238, 215, 230))
    assert otsu.foreground(noisy(image), 8.0)[30:170, 120:170].mean() > 0.99


MARKERS = {
    "blue": (40, 60, 160),
    "pale blue": (90, 110, 200),
    "green": (20, 130, 70),
    "red": (210, 30, 40),
    "black": (25, 22, 28),
    "grey dust": (120, 118, 121),
}


@pytest.mark.parametrize("colour", MARKERS.values(), ids=MARKERS.keys())
def test_marker_and_dust_are_not_tissue_and_tissue_beside_them_is(
    colour: tuple[int, int, int],
) -> None:
    image = painted()
    pen = ImageDraw.Draw(image)
    pen.rectangle((20, 20, 100, 180), PURPLE)
    pen.line([(150, 10), (160, 190)], colour, width=25)
    found = otsu.foreground(noisy(image), 8.0)
    assert found[:, 125:].mean() < 0.01
    assert found[25:175, 25:95].all()


def test_a_black_border_is_not_tissue() -> None:
    image = Image.new("RGB", (200, 200), (0, 0, 0))
    image.paste(painted(size=140), (30, 30))
    ImageDraw.Draw(image).rectangle((60, 60, 120, 120), PINK)
    found = otsu.foreground(noisy(image), 8.0)
    assert found[64:116, 64:116].all()
    found[56:125, 56:125] = False
    assert found.mean() < 1e-3


@pytest.mark.parametrize(
    "stain", [(200, 60, 90), (100, 50, 20), (60, 60, 140), (230, 130, 180), (90, 60, 120)]
)
def test_strong_stains_are_no_marker(stain: tuple[int, int, int]) -> None:
    """Blood, DAB, blue haematoxylin, eosin, haematoxylin."""
    image = painted()
    ImageDraw.Draw(image).rectangle((40, 40, 160, 160), stain)
    assert otsu.foreground(noisy(image), 8.0)[45:155, 45:155].all()


def test_resolution_scales_the_method() -> None:
    fine = painted(size=400)
    ImageDraw.Draw(fine).rectangle((80, 80, 239, 239), PINK)
    coarse = fine.resize((200, 200), Image.Resampling.BOX)
    at_4 = otsu.foreground(np.asarray(fine), 4.0).sum() * 4.0**2
    at_8 = otsu.foreground(np.asarray(coarse), 8.0).sum() * 8.0**2
    assert at_4 == pytest.approx(at_8, rel=0.03)
