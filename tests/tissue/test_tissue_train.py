import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import unet
from pathfm_cli.tissue import pairs, train

CONFIG = train.TrainConfig(steps=6, batch=2, size_px=32, widths=(4, 6), precision="fp32")


@pytest.fixture(scope="module")
def found() -> list[pairs.Pair]:
    """Half of a thumbnail is stained."""
    mask = np.zeros((80, 80), bool)
    mask[:, :40] = True
    rgb = np.where(mask[..., None], (180, 90, 150), (243, 243, 243)).astype(np.uint8)
    return [pairs.make("half", rgb, mask)]


@pytest.fixture(autouse=True)
def few_fresh_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "FRESH", 3)


def test_the_loss_of_one_pixel_is_what_the_formula_says() -> None:
    """Logit 0 against 1: BCE = ln 2, soft Dice with 1 added = (2 * 0.5 + 1) / (0.5 + 1 + 1)."""
    value = train.loss(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert float(value) == pytest.approx(math.log(2) + 1 - 2 / 2.5)


def test_the_rate_warms_up_and_ends_at_nothing() -> None:
    """Warmup is 5 of 100 steps: 1/5, 2/5, ... of the peak; half of it midway down."""
    config = train.TrainConfig(steps=100, lr=1.0)
    rates = [train.learning_rate(step, config) for step in range(101)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[5 + 19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.2)))
    assert rates[100] == pytest.approx(0)


def test_it_learns_what_it_is_shown(found: list[pairs.Pair], tmp_path: Path) -> None:
    """Two pixels of colour tell; few steps are enough to see that the two halves part."""
    config = train.TrainConfig(steps=60, batch=4, size_px=32, widths=(8,), precision="fp32")
    with unet.one_thread():
        record = train.train(found, tmp_path / "u.safetensors", config, device="cpu", workers=1)
    header = artifacts.read_header(tmp_path / "u.safetensors", "segmenter")
    assert record["id"] == header.id and header.settings["pairs"] == ["half"]
    found_half = unet.load(tmp_path / "u.safetensors", "cpu").probability(found[0].rgb)
    assert found_half[:, 5:35].mean() > found_half[:, 45:75].mean() + 0.3


def test_a_killed_run_goes_on_to_the_same_weights(
    found: list[pairs.Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    whole, out = tmp_path / "whole.safetensors", tmp_path / "u.safetensors"
    train.train(found, whole, CONFIG, device="cpu", workers=1)

    def die(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(found, out, CONFIG, device="cpu", workers=1, progress=die)
    assert not out.exists()
    steps: list[int] = []
    train.train(
        *(found, out, CONFIG),
        device="cpu",
        workers=3,
        progress=lambda done, total: steps.append(done),
    )
    assert steps == [5, 6]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.parts-*"))


def test_a_checkpoint_that_was_cut_short_is_named(
    found: list[pairs.Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)

    def die(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(found, tmp_path / "u", CONFIG, device="cpu", workers=1, progress=die)
    (checkpoint,) = tmp_path.glob("u.parts-*/checkpoint.safetensors")
    whole = checkpoint.read_bytes()
    for size in (0, 5, len(whole) // 2):
        checkpoint.write_bytes(whole[:size])
        with pytest.raises(errors.InputError, match="is no checkpoint of this training") as caught:
            train.train(found, tmp_path / "u", CONFIG, device="cpu", workers=1)
        assert caught.value.hint.startswith("rm -r ")


def test_the_seed_shapes_the_first_weights() -> None:
    first, again, other = (
        train._start(dataclasses.replace(CONFIG, seed=seed), torch.device("cpu")).module.head.weight
        for seed in (3, 3, 2**64 - 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_is_scored_on_scenes_that_it_did_not_learn_from(
    found: list[pairs.Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps of two scenes, then three others, each made once."""
    made: list[tuple[int, int]] = []
    scene = train.compose.scene

    def watched(found, recipe, seed, index, **rest):
        made.append((seed, index))
        return scene(found, recipe, seed, index, **rest)

    monkeypatch.setattr(train.compose, "scene", watched)
    train.train(found, tmp_path / "u.safetensors", CONFIG, device="cpu", workers=1)
    assert len(made) == len(set(made)) == 6 * 2 + 3


def test_a_finished_run_is_not_repeated_and_another_is_refused(
    found: list[pairs.Pair], tmp_path: Path
) -> None:
    out = tmp_path / "u.safetensors"
    first = train.train(found, out, CONFIG, device="cpu")
    before = out.stat().st_mtime_ns
    assert train.train(found, out, CONFIG, device="cpu") == first
    assert out.stat().st_mtime_ns == before
    assert train.plan(found, out, CONFIG)["steps"] == 0
    other = train.TrainConfig(steps=6, batch=2, size_px=32, widths=(4, 6), precision="fp32", seed=1)
    train.check(out, CONFIG, "cpu")
    with pytest.raises(errors.OutputClash, match=r"seed=0 \(now 1\)"):
        train.check(out, other, "cpu")
    with pytest.raises(errors.OutputClash, match=r"seed=0 \(now 1\)"):
        train.train(found, out, other, device="cpu")


def test_a_file_that_is_no_artifact_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(errors.OutputClash, match="is no pathfm artifact"):
        train.check(tmp_path / "notes.txt", CONFIG, "cpu")


def test_no_tissue_is_nothing_to_learn(tmp_path: Path) -> None:
    bare = pairs.make("bare", np.full((40, 40, 3), 240, np.uint8), np.zeros((40, 40), bool))
    for nothing in ([], [bare]):
        with pytest.raises(errors.InputError, match="no annotated tissue"):
            train.train(nothing, tmp_path / "u.safetensors", CONFIG)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mpp": 100.0}, "mpp 100 is no thumbnail"),
        ({"steps": 0}, "must be 1 or more"),
        ({"size_px": 100}, "100 px does not fit"),
        ({"precision": "fp8"}, "fp8"),
        ({"seed": 99999999999999999999999}, "from 0 to 2"),
        ({"seed": -1}, "from 0 to 2"),
    ],
)
def test_settings_are_checked(values: dict, message: str) -> None:
    with pytest.raises(errors.UsageError, match=message):
        train.TrainConfig(**values)
