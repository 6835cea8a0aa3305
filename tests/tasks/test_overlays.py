from __future__ import annotations

import numpy as np
from PIL import Image

from pathfm_cli.tasks import masks, overlays


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_maps_and_overlays_read_back(tmp_path):
    whole = masks.Labelled(picture(5, 6), np.eye(5, 6, dtype=np.uint8))
    predicted = np.full((5, 6), 2, np.uint8)
    overlays.write_map(tmp_path / "p.png", predicted)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "p.png")), predicted)
    overlays.write_overlay(tmp_path / "o.png", whole, predicted)
    panels = np.asarray(Image.open(tmp_path / "o.png"))
    assert panels.shape == (5, 3 * 6 + 2 * 4, 3)
    np.testing.assert_array_equal(panels[:, :6], whole.image)
    truth, background = panels[:, 10:16], whole.label == 0
    np.testing.assert_array_equal(truth[background], whole.image[background])
    expected = 0.5 * whole.image[0, 0] + 0.5 * overlays.COLOURS[1]
    np.testing.assert_array_equal(truth[0, 0], expected.astype(np.uint8))
    assert (panels[:, 20:] != whole.image).any(axis=-1).all()


def test_colours_take_turns():
    assert overlays.colour_of(1) == [0, 158, 115] == overlays.colour_of(6)
    assert overlays.colour_of(0) == [0, 0, 0]
