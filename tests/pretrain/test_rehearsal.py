"""A run tried out: what it says of memory and time does not depend on how it was tried."""

import pytest
import torch

from pathfm_cli import config, errors
from pathfm_cli.pretrain import launch, place, rehearsal, run, share, trial

HERE = place.Place(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_bytes_of_a_patch_are_those_of_more_patches(micro, micro2, method):
    # So many prototypes that their lengths, which no patch needs, are most of what is kept.
    changes = ("train.batch_size=8", "loss.koleo=0.0", "head.prototypes=32768")
    settings = (micro if method == "dino" else micro2)(*changes)
    step = trial._cpu_step(settings, HERE, 8, 0.01)
    stepper = trial._Stepper(settings, HERE)
    four, eight = (
        trial._saved(stepper.method, lambda count=count: stepper.take(count)) for count in (4, 8)
    )
    assert step.patch_bytes == pytest.approx((eight - four) / 4, rel=0.1)
    # At least the pixels of both global and both local views, as float32.
    assert step.patch_bytes > 4 * 3 * (2 * 32**2 + 2 * 16**2)
    whole = stepper.state_bytes() + eight
    assert step.state_bytes + 8 * step.patch_bytes == pytest.approx(whole, rel=0.1)


def test_first_weights_are_not_asked_for(micro):
    settings = micro("model.init=vit_tiny_patch16_224.augreg_in21k")
    assert trial._cpu_step(settings, HERE, 1, 0.01).seconds > 0


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ({1: 3.0, 2: 4.0}, 10.0),  # 2 s whatever the size, and 1 s a patch
        ({1: 3.0, 2: 5.0}, 17.0),  # 1 s and 2 s a patch
        ({1: 3.0, 2: 4.1}, 4.1 + 6 * 1.1),
        ({1: 5.0, 2: 4.0}, 4.0 + 6 * 1.0),  # noise: half of the time is taken for fixed
        ({1: 1.0, 2: 4.0}, 4.0 + 6 * 2.0),  # noise: a patch takes no more than the mean one
        ({8: 3.0, 4: 2.0, 2: 9.0}, 3.0),
        ({1: 2.0}, 16.0),
    ],
)
def test_a_step_of_eight_from_smaller_ones(times, seconds):
    assert trial.extrapolated(times, 8) == pytest.approx(seconds)


def test_what_fits_on_a_gpu():
    step = trial.Step(seconds=1.0, state_bytes=4_400_000_000, patch_bytes=1e9)
    assert [rehearsal.fitting(step, gb) for gb in (4, 16, 24)] == [0, 10, 17]


@pytest.mark.parametrize(
    ("device_bytes", "processes", "nodes", "read", "compute"),
    [
        (None, 1, 1, 100, 8 / 2),
        (None, 2, 1, 100, 8 / 2 * 2),
        (None, 16, 1, 100, 8 / 2 * 4),  # four cores
        (None, 4, 2, 200, 8 / 2 * 4),
        (10**9, 16, 2, 1600, 8 / 2 * 16),
    ],
)
def test_what_one_process_means_for_all(device_bytes, processes, nodes, read, compute):
    step = trial.Step(seconds=2.0, state_bytes=0, patch_bytes=0)
    found = trial.Trial(
        read_per_s=100, step=step, remote=False, device_bytes=device_bytes, seconds=1
    )
    split = share.share(8 * processes, processes)
    rates = rehearsal.rates(found, split, nodes, 4)
    assert (rates.read_per_s, rates.compute_per_s) == (read, compute)
    assert rates.one_after_the_other == (device_bytes is None)


def test_a_rehearsal_adds_up(tissue, micro):
    settings = micro("train.batch_size=8")
    size = run.Size(parameters=0, share=share.share(8, 2, parts=2))
    machine = run.Machine(processes=2, device="cpu")
    told = rehearsal.rehearse(tissue, settings, size, machine, 1000, 0.5)
    read, step = told["read_patches_per_s"], told["compute_patches_per_s"]
    assert told["duration_s"] == pytest.approx(1000 / read + 1000 / step, abs=1)
    assert told["memory_gb_per_process"] >= told["memory_gb_of_states"] >= 0
    fits = told["patches_at_once_by_gpu_gb"]
    assert 0 < fits["16"] < fits["80"] and "memory_gb_here" not in told


@pytest.mark.parametrize(
    ("code", "words", "exit_code"),
    [
        ("launch.leave_error(errors.UsageError('Too wide.', 'narrower'))", "Too wide.", 2),
        ("pass", "ended with exit code 9", 1),
    ],
)
def test_errors_of_the_trial_come_back(tmp_path, micro, monkeypatch, code, words, exit_code):
    text = "import sys; from pathfm_cli import errors; from pathfm_cli.pretrain import launch\n"
    (tmp_path / "stand_in.py").write_text(f"{text}{code}; sys.exit(9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(rehearsal, "MODULE", "stand_in")
    size, machine = run.Size(parameters=0, share=share.share(8, 1)), run.Machine(device="cpu")
    with pytest.raises(errors.PathfmError, match=words) as told:
        rehearsal.rehearse(tmp_path / "t.parquet", micro(), size, machine, 8, 0.1)
    assert told.value.exit_code == exit_code and told.value.hint


def test_a_tissue_that_gives_no_patch_is_refused_by_the_trial(tissue, tmp_path, monkeypatch, micro):
    recipe_file, left = tmp_path / "r.toml", tmp_path / "error.json"
    recipe_file.write_text(config.dumps(micro("data.mpp=[0.01]")))
    monkeypatch.setenv(launch.ERROR_FILE, str(left))
    flags = ["--recipe", str(recipe_file), "--at-once", "4", "--seconds", "1"]
    assert trial.main([str(tissue), *flags]) == 2
    assert "No slide can give a patch" in str(launch.left(left))
