import numpy as np
import pytest

from pathfm_cli.tissue import stains

GLASS = np.array([240, 244, 238], np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_glass_has_no_density_and_a_tenth_of_its_light_has_one() -> None:
    rgb = np.array([[[240, 244, 238], [24, 24, 24]]], np.uint8)
    found = stains.density(rgb, np.array([240, 244, 238], np.float32))
    assert found[0, 0] == pytest.approx([0, 0, 0], abs=1e-6)
    assert found[0, 1] == pytest.approx([1.0, np.log10(244 / 24), np.log10(238 / 24)], abs=1e-6)


def test_light_is_the_inverse_of_density() -> None:
    rgb = rng().integers(1, 256, (9, 7, 3), dtype=np.uint8)
    back = stains.light(stains.density(rgb, GLASS), GLASS)
    assert np.abs(back - rgb).max() < 1e-2


def test_no_light_at_all_stays_finite() -> None:
    assert np.isfinite(stains.density(np.zeros((1, 1, 3), np.uint8), GLASS)).all()


def test_jitter_without_strength_changes_nothing() -> None:
    od = rng().random((5, 5, 3)).astype(np.float32)
    assert stains.jitter(od, rng(), 0.0) == pytest.approx(od, abs=1e-5)
    assert np.abs(stains.jitter(od, rng(), 0.3) - od).max() > 0.01


def test_pure_haematoxylin_stays_haematoxylin_in_ihc() -> None:
    """Without eosin there is no brown: the colour direction stays, only its strength changes."""
    od = np.full((4, 4, 1), 0.5, np.float32) * np.asarray(stains.HAEMATOXYLIN, np.float32)
    found = stains.as_ihc(od, rng())
    direction = found[0, 0] / np.linalg.norm(found[0, 0])
    expected = np.asarray(stains.HAEMATOXYLIN) / np.linalg.norm(stains.HAEMATOXYLIN)
    assert direction == pytest.approx(expected, abs=1e-3)


def test_pas_turns_eosin_magenta() -> None:
    """Pure eosin of density 1 becomes PAS stain, of 0.6 to 1.4 times its strength."""
    eosin = np.asarray(stains.EOSIN) / np.linalg.norm(stains.EOSIN)
    found = stains.as_pas(np.full((1, 1, 1), 1.0) * eosin.astype(np.float32), rng())[0, 0]
    assert 0.6 <= np.linalg.norm(found) <= 1.4
    pas = np.asarray(stains.PAS) / np.linalg.norm(stains.PAS)
    assert found / np.linalg.norm(found) == pytest.approx(pas, abs=1e-3)


def test_bare_glass_stays_bare_under_every_stain() -> None:
    bare = np.zeros((3, 3, 3), np.float32)
    for stain in (stains.as_ihc, stains.as_pas):
        assert np.abs(stain(bare, rng())).max() < 1e-4
