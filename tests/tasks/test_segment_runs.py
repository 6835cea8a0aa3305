"""Which run of a segmentation is scored, and which is written."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pathfm_cli.model import weights
from pathfm_cli.tasks import convergence, masks, segment, segmentation

SIZE = 64
CONFIG = segmentation.Config(
    decoder="conv",
    crops=8,
    size_px=SIZE,
    stride_px=48,
    keep_converged=True,
    training=segmentation.Training(epochs=2),
)


@pytest.fixture(scope="module")
def encoder():
    return weights.load("random/vit_tiny_patch16_224", image_size_px=SIZE, device="cpu")


class Everywhere(torch.nn.Module):
    """Says one class of two everywhere."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def shares(self, grid, size_px):
        found = torch.zeros((len(grid), 2, size_px, size_px))
        found[:, self.number] = 1
        return found


def attempt(number, said):
    return convergence.Attempt(
        number=number,
        seed=number,
        module=Everywhere(said),
        losses=[0.0],
        train_dice=1.0,
        constant_dice=0.5,
    )


def item(folder, name, split, height=SIZE, width=SIZE):
    label = np.zeros((height, width), np.uint8)
    label[: height // 2] = 1
    rng = np.random.default_rng(0)
    shade = 220 - 150 * label[..., None] + rng.integers(-9, 9, (height, width, 3))
    Image.fromarray(shade.astype(np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(label).save(folder / f"{name}-label.png")
    return masks.Item(name, folder / f"{name}.png", folder / f"{name}-label.png", split)


@pytest.mark.parametrize("shown", [0, 1])
def test_runs_keep_their_order_and_the_map_is_that_of_the_one_shown(tmp_path, encoder, shown):
    """40 x 48 px in a window of 64: what lies outside the image is not scored."""
    one = item(tmp_path, "a", "test", 40, 48)
    runs = [attempt(0, said=0), attempt(1, said=1)]
    stitched, windows = segment._score(encoder, runs, shown, CONFIG, 2, tmp_path, one)
    assert stitched.tolist() == [[[960, 0], [960, 0]], [[0, 960], [0, 960]]]
    assert windows.tolist() == [stitched.tolist()]
    written = np.asarray(Image.open(tmp_path / "predictions" / "a.png"))
    assert written.shape == (40, 48) and (written == shown).all()


def test_scores_and_maps_are_those_of_the_first_kept_run(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(convergence.Attempt, "converged", property(lambda self: self.number == 1))
    items = [item(tmp_path, name, split) for name, split in (("a", "train"), ("b", "test"))]
    fresh = [attempt(0, said=0), attempt(1, said=1)]
    monkeypatch.setattr(convergence, "attempts", lambda *given: iter(fresh))
    monkeypatch.setattr(segment, "_save_decoders", lambda *given: None)
    result, _ = segment.segment(items, encoder, tmp_path / "out", CONFIG)
    # All foreground on a half: 2 x 1/2 / (1/2 + 1).
    assert result.record["metrics"]["dice_micro_foreground"] == pytest.approx(2 / 3)
    assert (np.asarray(Image.open(tmp_path / "out" / "predictions" / "b.png")) == 1).all()
    table = pl.read_parquet(result.record["path"]).filter(
        (pl.col("metric") == "dice_micro_foreground") & pl.col("run").is_not_null()
    )
    by_run = dict(table.filter(split="test")["run", "value"].iter_rows())
    assert by_run == {0: 0.0, 1: pytest.approx(2 / 3)}
