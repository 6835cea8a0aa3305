"""`examples/ci`: the gate fails on a collapsed encoder, passes on a healthy one; real processes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import pathfm

from pathfm_cli import artifacts
from pathfm_cli.model import export, vit

FOLDER = Path(__file__).parents[2] / "examples" / "ci"
SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"


def gate(folder, *arguments, **environment):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(FOLDER / "gate.sh"), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Patches of a real slide; a network of random weights, and one whose output is constant."""
    folder = tmp_path_factory.mktemp("ci")
    for arguments in (
        ("index", str(SLIDE), "-o", "s.parquet"),
        ("mask", "s.parquet", "-o", "t.parquet"),
        ("sample", "t.parquet", "--n", "16", "--mpp", "1", "--size", "64", "-o", "p.parquet"),
    ):
        done = pathfm(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    encoder = vit.build("vit_tiny_patch16_224", depth=2)
    half = (0.5, 0.5, 0.5)
    info = export.Info(
        arch="vit_tiny_patch16_224",
        kwargs={"depth": 2, "dynamic_img_size": True},
        image_size_px=64,
        mean=half,
        std=half,
    )
    header = artifacts.Header(kind="checkpoint", settings={"of": "healthy"})
    export.export(folder / "healthy", encoder, info, header)
    with torch.no_grad():
        encoder.norm.weight.zero_()
        encoder.norm.bias.copy_(torch.linspace(-1, 1, len(encoder.norm.bias)))
    header = dataclasses.replace(header, settings={"of": "collapsed"})
    export.export(folder / "collapsed", encoder, info, header)
    return folder


def test_the_gate_tells_a_collapsed_encoder_from_a_healthy_one(folder):
    patches = ("--", "--patches", "p.parquet")
    healthy = gate(folder, "healthy", "0.999", *patches)
    assert healthy.returncode == 0, healthy.stderr
    assert json.loads(healthy.stdout)["metrics"]["odcorr"] < 0.999
    (folder / "main.json").write_text(healthy.stdout)
    summary = folder / "summary.md"
    arguments = ("collapsed", "1", "main.json", "0.0001", *patches)
    collapsed = gate(folder, *arguments, GITHUB_STEP_SUMMARY=str(summary))
    assert collapsed.returncode == 5, collapsed.stderr
    assert json.loads(collapsed.stdout)["metrics"]["odcorr"] == pytest.approx(1, abs=1e-9)
    assert "::error title=ODCorr::pathfm: ODCorr 1.0000 is 0." in collapsed.stderr
    assert "exit code 5" in summary.read_text() and '"n":16' in summary.read_text()


def test_what_cannot_be_measured_is_no_pass(folder):
    absent = gate(folder, "absent", "0.9")
    assert (absent.returncode, absent.stdout) == (3, "")
    usage = gate(folder, "healthy")
    assert usage.returncode == 2 and "gate.sh CHECKPOINT MAX" in usage.stderr


def test_the_workflow_calls_the_gate():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((FOLDER / "odcorr.yml").read_text())
    steps = workflow["jobs"]["odcorr"]["steps"]
    step = next(step for step in steps if step.get("name") == "Gate")
    script = step["run"]
    assert "examples/ci/gate.sh" in script
    assert step["shell"] == "bash"  # without it GitHub sets no pipefail, and tee hides exit 5
    # What a user types must not become part of the script.
    assert not re.search(r"\$\{\{", script)


MICRO = {
    "train.steps": 30, "train.steps_per_epoch": 10, "train.batch_size": 16,
    "train.checkpoint_every": 30, "train.probe_patches": 64, "train.watch_every": 0,
    "data.size_px": 64, "data.mpp": "[1.0]", "crops.global_size_px": 48,
    "crops.local_size_px": 32, "crops.local_count": 2, "model.patch_size": 8,
    "model.embed_dim": 48, "model.depth": 2, "model.num_heads": 3,
    "head.hidden": 64, "head.bottleneck": 32, "head.prototypes": 128, "ema.momentum": 0.9,
}  # fmt: skip


@pytest.mark.slow
def test_the_gate_on_two_trainings(folder):
    """Real checkpoints: one spread by KoLeo, one driven into a point by its learning rate."""
    changes = {
        "good": {"loss.koleo": 0.5},
        "bad": {"optim.base_lr": 10.0, "optim.warmup_epochs": 0.0, "optim.clip_norm": 100.0},
    }
    for name, change in changes.items():
        said = [f"--set={key}={value}" for key, value in {**MICRO, **change}.items()]
        done = pathfm("pretrain", "t.parquet", "--recipe", "tiny", *said, "-o", name, cwd=folder)
        assert done.returncode == 0, done.stderr
    good, bad = (gate(folder, name, "0.95") for name in changes)
    assert (good.returncode, bad.returncode) == (0, 5), (good.stdout, bad.stdout)
