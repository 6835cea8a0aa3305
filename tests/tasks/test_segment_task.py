from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import convergence, masks, segment, segmentation

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
    over = table.frame.filter(pl.col("image").is_null() & pl.col("run").is_null())
    values = dict(over.filter(pl.col("split") == "test")["metric", "value"].iter_rows())
    assert values == {k: v for k, v in found.items() if k in values}
    windows = dict(over.filter(pl.col("split") == "test windows")["metric", "value"].iter_rows())
    assert windows["dice_micro_foreground"] == found["dice_micro_foreground:windows"]
    document = json.loads((out / "scores.json").read_text())
    assert document["classes"] == ["background", "1", "2"]
    assert document["settings"]["training"]["epochs"] == 30
    counts = np.array(document["confusion"]["test"][0])
    assert counts.sum() == truth.size and counts[1:].sum() == (truth > 0).sum()
    assert document["attempts"][0]["converged"] and len(document["attempts"][0]["losses"]) == 30
    assert "speed:" in result.lines[-1] and found["window_per_s"] > 0
    assert result.record["path"] == str(out / "scores.parquet")


class Left(torch.nn.Module):
    """Says class 1 in the left 32 columns of every window."""

    def shares(self, grid, size_px):
        found = torch.zeros((len(grid), 2, size_px, size_px))
        found[:, 1, :, :32] = found[:, 0, :, 32:] = 1
        return found


def test_windows_are_scored_one_by_one(tmp_path, encoder):
    """64 x 96 px: windows of 64 at stride 48 lie at x = 0 and 32; columns 32 to 63 count twice."""
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "a.png")
    label = np.zeros((64, 96), np.uint8)
    label[:, :32] = 1
    Image.fromarray(label).save(tmp_path / "a-label.png")
    item = masks.Item("a", tmp_path / "a.png", tmp_path / "a-label.png", "test")
    left = convergence.Attempt(
        number=0, seed=0, module=Left(), losses=[0.0], train_dice=1.0, constant_dice=0.5
    )
    stitched, windows = segment._score(encoder, [left], 0, CONFIG, 2, tmp_path, item)
    assert stitched.shape == (1, 2, 2) and windows.shape == (2, 1, 2, 2)
    # Columns 32 to 63: the first window says 0, the second 1, and on a tie the first class wins.
    assert stitched[0].tolist() == [[64 * 64, 0], [0, 64 * 32]]
    assert windows[0, 0].tolist() == [[64 * 32, 0], [0, 64 * 32]]
    assert windows[1, 0].tolist() == [[64 * 32, 64 * 32], [0, 0]]


def test_runs_have_a_mean_a_deviation_and_all_their_decoders(tmp_path, encoder):
    config = dataclasses.replace(
        CONFIG, decoder="conv", runs=2, training=segmentation.Training(epochs=2)
    )
    result, _ = segment.segment(images(tmp_path), encoder, tmp_path / "out", config)
    table = pl.read_parquet(result.record["path"]).filter(
        (pl.col("metric") == "dice_micro_foreground")
        & (pl.col("split") == "test")
        & pl.col("image").is_null()
    )
    by_run = dict(table["run", "value"].iter_rows())
    assert by_run[None] == pytest.approx((by_run[0] + by_run[1]) / 2) and by_run[0] != by_run[1]
    found = result.record["metrics"]
    assert found["dice_micro_foreground_std"] == pytest.approx(abs(by_run[0] - by_run[1]) / 2**0.5)
    assert (found["runs"], found["attempts"]) == (2, 2)
    names = safetensors_torch.load_file(tmp_path / "out" / "decoder.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"run0", "run1"}


def test_runs_that_do_not_converge_are_told(tmp_path, encoder, monkeypatch):
    items = images(tmp_path)
    monkeypatch.setattr(
        convergence.Attempt, "converged", property(lambda self: self.number in (1, 3))
    )
    config = dataclasses.replace(CONFIG, runs=2, keep_converged=True)
    result, _ = segment.segment(items, encoder, tmp_path / "kept", config)
    found = result.record["metrics"]
    assert (found["runs"], found["attempts"], found["converged"]) == (2, 4, 2)
    assert [note.split(" did")[0] for note in result.notes] == ["run 0", "run 2"]
    assert all(note.endswith("it is left out of the mean") for note in result.notes)
    told = [line for line in result.lines if line.startswith("run ")]
    assert [line.split(", ")[-1] for line in told] == ["left out", "converged"] * 2
    document = json.loads((tmp_path / "kept" / "scores.json").read_text())
    assert document["kept"] == [1, 3] and len(document["attempts"]) == 4
    rows = pl.read_parquet(result.record["path"])
    told = rows.filter(pl.col("metric") == "converged")["run", "value"].rows()
    assert told == [(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)]
    all_of_them = dataclasses.replace(CONFIG, runs=2)
    result, _ = segment.segment(items, encoder, tmp_path / "all", all_of_them)
    assert result.record["metrics"]["runs"] == 2
    assert result.notes[0].endswith("it is in the mean")


def test_no_run_that_converges_is_an_error(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(convergence.Attempt, "converged", property(lambda self: False))
    config = dataclasses.replace(CONFIG, keep_converged=True)
    with pytest.raises(errors.PathfmError, match="None of 3 runs converged"):
        segment.segment(images(tmp_path), encoder, tmp_path / "out", config)
    assert not list(tmp_path.glob("out*"))


def test_named_classes(tmp_path, encoder):
    items = images(tmp_path, classes=3)
    names = ("background", "gland", "stroma")
    result, _ = segment.segment(
        items, encoder, tmp_path / "out", dataclasses.replace(CONFIG, classes=names)
    )
    assert {"dice:gland", "iou:stroma"} <= result.record["metrics"].keys()
    with pytest.raises(errors.UsageError, match="has the class 2; 2 are named"):
        segment.segment(
            items, encoder, tmp_path / "few", dataclasses.replace(CONFIG, classes=names[:2])
        )


def test_boundaries_are_a_class(tmp_path, encoder):
    config = dataclasses.replace(CONFIG, labels="boundaries")
    result, _ = segment.segment(images(tmp_path), encoder, tmp_path / "out", config)
    assert {"dice:inside", "dice:boundary"} <= result.record["metrics"].keys()


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
    named = dataclasses.replace(CONFIG, crops=8)
    with pytest.raises(errors.OutputClash) as caught:
        segment.segment(items, encoder, out, named)
    assert "classes" not in str(caught.value)
    shutil.rmtree(out / "predictions")
    restored, _ = segment.segment(items, encoder, out, CONFIG)
    assert restored.notes == () and restored.record["id"] == first.record["id"]
    assert len(list((out / "predictions").iterdir())) == 2
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


def test_label_maps_that_cannot_be_read_are_not_called_empty(tmp_path, encoder):
    items = images(tmp_path)
    for number in (4, 5):
        (tmp_path / f"{number}-label.png").unlink()
    with pytest.raises(errors.InputError, match="No image of test can be used: .* does not exist"):
        segment.segment(items, encoder, tmp_path / "out", CONFIG)
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "5-label.png")
    with pytest.raises(errors.InputError, match="of test that can be read hold no foreground"):
        segment.segment(items, encoder, tmp_path / "out", CONFIG)


def test_a_place_that_takes_no_folder_is_told_before_training(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(convergence, "attempts", lambda *given: pytest.fail("it trained"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.Unwritable, match="file/out cannot be written"):
        segment.segment(images(tmp_path), encoder, tmp_path / "file" / "out", CONFIG)


def test_a_link_to_a_folder_stays_a_link(tmp_path, encoder):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    short = dataclasses.replace(CONFIG, training=segmentation.Training(epochs=1))
    segment.segment(images(tmp_path), encoder, tmp_path / "out", short)
    assert (tmp_path / "out").is_symlink()
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["real"]
    assert (tmp_path / "disk" / "real" / "scores.parquet").is_file()


def test_both_splits_are_needed(tmp_path):
    items = [item for item in images(tmp_path) if item.split == "train"]
    with pytest.raises(errors.InputError, match="the splits are train"):
        segmentation.split(items)
