"""`examples/ci`: the gate fails on a collapsed encoder, passes on a healthy one; real processes."""

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path

import exported
import pytest
from processes import commands, pathfm

from pathfm_cli import artifacts
from pathfm_cli.model import export

FOLDER = Path(__file__).parents[2] / "examples" / "ci"
SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"


def gate(folder, *arguments, **environment):
    return subprocess.run(
        ["bash", str(FOLDER / "gate.sh"), *map(str, arguments)],
        cwd=folder,
        env={**commands(), **environment},
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
    encoder, info = exported.encoder(), exported.INFO
    header = artifacts.Header(kind="checkpoint", settings={"of": "healthy"})
    export.export(folder / "healthy", encoder, info, header)
    exported.collapse(encoder)
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


def steps():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((FOLDER / "odcorr.yml").read_text())
    job = workflow["jobs"]["odcorr"]
    return job["env"], {step["name"]: step for step in job["steps"] if "name" in step}


def test_the_workflow_needs_nothing_of_this_repository():
    env, named = steps()
    # HOST is no host: who copies the file must say where it comes from.
    assert env["PATHFM"] == "git+https://HOST/OWNER/pathfm@REVISION"
    assert named["Install"]["run"] == 'pip install "$PATHFM"'
    assert not re.search(r"examples/|constraints|gate\.sh", named["Gate"]["run"])
    for step in (named["Install"], named["Gate"]):
        # What a user types must not become part of the script.
        assert not re.search(r"\$\{\{", step["run"])


@pytest.mark.parametrize("code", [0, 5, 3])
@pytest.mark.parametrize("kept", [False, True])
def test_the_workflow_ends_as_odcorr_does(tmp_path, code, kept):
    """In a folder that holds no more than a user's repository; `pathfm` notes its words."""
    env, named = steps()
    shim = tmp_path / "pathfm"
    shim.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > words\necho "{{}}"\nexit {code}\n')
    shim.chmod(0o755)
    if kept:
        (tmp_path / "odcorr").mkdir()
        (tmp_path / env["BASELINE"]).write_text("{}")
    (tmp_path / "step.sh").write_text(named["Gate"]["run"])
    given = {"CHECKPOINT": "my run", "MAX": "0.9", "GITHUB_STEP_SUMMARY": "summary"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "step.sh"],  # as shell: bash does
        cwd=tmp_path,
        env={**os.environ, **env, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
    )
    assert done.returncode == code
    baseline = ["--baseline", "odcorr/main.json", "--tolerance", "0.02"] if kept else []
    words = ["odcorr", "my run", "--max", "0.9", *baseline, "--json"]
    assert (tmp_path / "words").read_text().splitlines() == words
    assert f"exit code {code}" in (tmp_path / "summary").read_text()
    assert (tmp_path / "odcorr.json").read_text() == "{}\n"


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
