"""`pathfm pretrain` as a real process: runs, reruns, ranks."""

import json
import subprocess
import sys
from importlib import resources

import pytest
from micro_runs import metrics, micro, refused
from processes import pathfm


def test_a_run_ends_with_its_record_and_files(finished):
    run, done = finished
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["kind"], record["path"]) == ("checkpoint", str(run / "teacher.safetensors"))
    assert record["metrics"]["step"] == 8
    decided = "peak lr 6.25e-05 = base 0.004 x batch 4 / 256; batch 4 = 1 process x 1 part x 4"
    assert decided in done.stderr
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        *("run.json", "config.toml", "patches.parquet", "metrics.jsonl", "metrics.parquet"),
        *("watch.jsonl", "watch.parquet", "crops.jpg", "neighbours.jpg"),
        *("checkpoints", "model.json", "teacher.safetensors"),
    }
    assert len(metrics(run)) == 8


def test_a_rerun_is_up_to_date_also_from_its_own_config(finished, tissue):
    run, done = finished
    again = pathfm("pretrain", tissue, "--recipe", run / "config.toml", "-o", run, "-q")
    assert (again.returncode, again.stdout.strip()) == (0, str(run / "teacher.safetensors"))
    assert "up to date" in again.stderr


def test_two_ranks_train_as_one(finished, tissue, tmp_path):
    run = tmp_path / "two"
    done = pathfm("pretrain", tissue, "--recipe", "tiny", *micro(), "-o", run, "--procs", 2)
    assert done.returncode == 0, done.stderr
    for one, two in zip(metrics(finished[0]), metrics(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["teacher_entropy"] == pytest.approx(one["teacher_entropy"], rel=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_a_batch_in_parts_of_slides_that_meet_a_condition(finished, tissue, tmp_path):
    """The one slide meets it, so the patches are the same; parts and ranks only change rounding."""
    run = tmp_path / "parts"
    choice = ["--where", "vendor == 'aperio' and mpp < 1", "--accumulate", 2, "--procs", 2]
    done = pathfm("pretrain", tissue, "--recipe", "tiny", *micro(), *choice, "-o", run)
    assert done.returncode == 0, done.stderr
    assert "batch 4 = 2 processes x 2 parts x 1" in done.stderr
    assert "where = \"vendor == 'aperio' and mpp < 1\"" in (run / "config.toml").read_text()
    for one, two in zip(metrics(finished[0]), metrics(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_the_second_phase_goes_on_from_a_run(finished, tissue, tmp_path):
    """Half the peak, heads and student of the first run, and its weights in the parents."""
    recipe = tmp_path / "two.toml"
    tiny = resources.files("pathfm_cli.pretrain.recipes") / "tiny.toml"
    second = [
        *("[phase2.start]", 'student = "own"', 'heads = "keep"', 'centre = "keep"'),
        *("[phase2.optim]", "lr_factor = 0.5", "warmup_epochs = 0.0"),
    ]
    recipe.write_text("\n".join([tiny.read_text(), *second]))
    run = tmp_path / "phase2"
    cached = ["--distinct-patches", 8, "--patch-cache", tmp_path / "pixels"]
    arguments = ["pretrain", tissue, "--recipe", recipe, *micro(), "--phase", 2, *cached]
    done = pathfm(*arguments, "--init", finished[0], "-o", run)
    assert done.returncode == 0, done.stderr
    assert "peak lr 3.125e-05 = base 0.004 x batch 4 / 256 x 0.5" in done.stderr
    assert f"first weights: {finished[0]}" in done.stderr
    assert metrics(run)[0]["lr"] == pytest.approx(3.125e-5)
    identity = json.loads((run / "run.json").read_text())
    assert [parent.partition(":")[0] for parent in identity["parents"]].count("weights") > 4
    (pixels,) = (tmp_path / "pixels").iterdir()
    assert pixels.stat().st_size == 8 * (48 * 48 * 3 + 4)
    without = pathfm(*arguments, "-o", tmp_path / "none")
    refused(without, 2, "goes on from the run of the one before", "--phase 2 --init run1/")
    gone = pathfm(*arguments, "--init", "gone/", "-o", tmp_path / "none")
    refused(gone, 3, "gone/, to start from, does not exist", "the path of a run or checkpoint")


def test_dry_run_touches_nothing(tissue, tmp_path):
    run = tmp_path / "run"
    done = pathfm("pretrain", tissue, "--recipe", "dino-vits16", "-o", run, "-n", "--measure-s", 0)
    plan = json.loads(done.stdout)
    assert plan["encoder"] == "vit_small_patch16_224.dino, 21,665,664 parameters"
    assert plan["patches"] == 128_000_000 and plan["steps"] == "0 to 125000"
    assert plan["peak_lr"] == pytest.approx(2e-4)
    assert plan["bytes"] > plan["requests"] > plan["patches"]
    assert not run.exists()


def test_help_is_quick_and_leads_with_examples():
    script = (
        "import sys; from pathfm_cli.cli import app; app.run(['pretrain', '--help']);"
        "print(*[m for m in ('torch', 'numpy', 'polars', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pathfm pretrain tissue.parquet --recipe tiny -o run/" in done.stdout
    assert done.stdout.splitlines()[-1] == ""
