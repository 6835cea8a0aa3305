from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_cli import artifacts, errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import masks, segment, segmentation

CONFIG = segmentation.Config(
    crops=24,
    size_px=64,
    stride_px=48,
    training=segmentation.Training(epochs=30, batch_size=8, lr=0.01),
)


@pytest.fixture(scope="module")
def encoder():
    return weights.load("random/vit_tiny_patch16_224", image_size_px=64, device="cpu")


def images(folder, count=6, classes=2):
    """Dark squares of 32 px on light ground, on the grid of the patches; two of them are test."""
    rng = np.random.default_rng(0)
    for number in range(count):
        label = np.zeros((64, 96), np.uint8)
        for row, column in rng.integers(0, (2, 3), (2, 2)):
            place = np.s_[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            label[place] = 1 + (row + column) % (classes - 1)
        shade = 230 - 90 * label[..., None] + rng.integers(-9, 9, (64, 96, 3))
        Image.fromarray(shade.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}-label.png")
    pl.DataFrame(
        {
            "image": [f"{i}.png" for i in range(count)],
            "label": [f"{i}-label.png" for i in range(count)],
            "split": ["train"] * (count - 2) + ["test"] * 2,
        }
    ).write_csv(folder / "index.csv")
    return masks.read_table(folder / "index.csv")


def test_scores_are_those_of_the_maps_it_writes(tmp_path, encoder):
    items = images(tmp_path, classes=3)
    out = tmp_path / "out"
    seen = []
    result, failed = segment.segment(
        items, encoder, out, CONFIG, progress=lambda *done: seen.append(done)
    )
    assert failed == [] and seen[-1] == (24 + 90 + 2, 24 + 90 + 2)
    assert sorted(path.name for path in out.iterdir()) == sorted(segmentation.NAMES)
    truth, predicted = [], []
    for name in ("4", "5"):
        truth.append(np.asarray(Image.open(tmp_path / f"{name}-label.png")))
        predicted.append(np.asarray(Image.open(out / "predictions" / f"{name}.png.png")))
    truth, predicted = np.stack(truth), np.stack(predicted)
    hits = ((truth == predicted) & (truth > 0)).sum()
    expected = 2 * hits / ((truth > 0).sum() + (predicted > 0).sum())
    found = result.record["metrics"]
    assert found["dice_micro_foreground"] == pytest.approx(expected)
    assert found["dice_micro_foreground"] > 0.8
    for c in (1, 2):
        both = 2 * ((truth == c) & (predicted == c)).sum()
        dice = both / ((truth == c).sum() + (predicted == c).sum())
        assert found[f"dice:{c}"] == pytest.approx(dice)
    assert (found["n_train"], found["n_test"], found["classes"]) == (4, 2, 3)
    table = artifacts.read_table(out / "scores.parquet", "scores")
    values = dict(table.frame.filter(pl.col("image").is_null())["metric", "value"].iter_rows())
    assert values == {k: v for k, v in found.items() if k in values}
    document = json.loads((out / "scores.json").read_text())
    assert document["classes"] == ["background", "1", "2"]
    assert document["settings"]["training"]["epochs"] == 30
    assert result.record["path"] == str(out / "scores.parquet")


def test_rerun_clash_and_overwrite(tmp_path, encoder):
    items, out = images(tmp_path), tmp_path / "out"
    first, _ = segment.segment(items, encoder, out, CONFIG)
    before = (out / "scores.parquet").stat().st_mtime_ns
    again, _ = segment.segment(items, encoder, out, CONFIG)
    assert again.notes == ("up to date",) and again.record["id"] == first.record["id"]
    assert (out / "scores.parquet").stat().st_mtime_ns == before
    other = segmentation.Config(crops=8, size_px=64, stride_px=48)
    with pytest.raises(errors.OutputClash, match=r"crops=24 \(now 8\)"):
        segment.segment(items, encoder, out, other)
    replaced, _ = segment.segment(items, encoder, out, other, overwrite=True)
    assert artifacts.read_header(out / "scores.parquet").id == replaced.record["id"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


def test_the_same_command_gives_the_same_maps(tmp_path, encoder):
    items = images(tmp_path)
    for name in ("a", "b"):
        segment.segment(items, encoder, tmp_path / name, CONFIG)
    for file in ("predictions/4.png.png", "overlays/5.png.png", "decoder.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_broken_images_are_rows(tmp_path, encoder):
    items = images(tmp_path)
    (tmp_path / "1.png").write_text("no image")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "5-label.png")
    result, failed = segment.segment(items, encoder, tmp_path / "out", CONFIG)
    assert [name for name, _ in failed] == ["1.png", "5.png"]
    assert result.record["failed"] == 2
    assert (result.record["metrics"]["n_train"], result.record["metrics"]["n_test"]) == (3, 1)
    rows = pl.read_parquet(result.record["path"]).filter(pl.col("error").is_not_null())
    assert rows["split"].to_list() == ["train", "test"]
    assert "differ in size" in rows["error"][1]


def test_a_failure_leaves_nothing(tmp_path, encoder):
    items = images(tmp_path)
    for number in (4, 5):
        (tmp_path / f"{number}.png").write_text("no image")
    with pytest.raises(errors.InputError, match="No image of test can be used"):
        segment.segment(items, encoder, tmp_path / "out", CONFIG)
    assert not list(tmp_path.glob("out*"))


def test_what_a_kill_left_is_cleared(tmp_path, encoder):
    items, out = images(tmp_path), tmp_path / "out"
    record = segment.segment(items, encoder, out, CONFIG)[0].record
    out.rename(tmp_path / f"out.parts-{record['id']}")
    (tmp_path / f"out.parts-{record['id']}" / "scores.parquet").write_text("half")
    segment.segment(items, encoder, out, CONFIG)
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    artifacts.read_table(out / "scores.parquet", "scores")


@pytest.mark.parametrize(
    "names", [["notes.txt"], ["scores.parquet", "labels"], ["predictions"], ["scores.parquet"]]
)
def test_a_folder_with_other_things_is_never_taken(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        if overwrite and set(names) <= set(segmentation.NAMES):
            continue
        with pytest.raises(errors.OutputClash):
            segmentation.check_free(tmp_path, overwrite=overwrite)


def test_labels_that_do_not_fit(tmp_path, encoder):
    items = images(tmp_path)
    Image.fromarray(np.full((64, 96), 7, np.uint8)).save(tmp_path / "5-label.png")
    with pytest.raises(errors.InputError, match="class 7; those of train end at 1"):
        segment.segment(items, encoder, tmp_path / "out", CONFIG)
    for number in range(4):
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / f"{number}-label.png")
    with pytest.raises(errors.InputError, match="train hold no foreground"):
        segment.segment(items, encoder, tmp_path / "out", CONFIG)


def test_both_splits_are_needed(tmp_path):
    items = [item for item in images(tmp_path) if item.split == "train"]
    with pytest.raises(errors.InputError, match="the splits are train"):
        segmentation.split(items)
