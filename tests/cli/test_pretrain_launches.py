"""Launchers, ranks and signals of `pathfm pretrain`, in fresh interpreters.

What is only compared with them, or goes on from them, is forked.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from micro_runs import metrics, micro
from processes import commands, pathfm

PATHFM = [sys.executable, "-m", "pathfm_cli"]


def test_sigterm_leaves_75_and_the_same_command_goes_on(tissue, tmp_path):
    arguments = ["pretrain", tissue, "--recipe", "tiny", *micro(train__steps=60)]
    run, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start(*arguments, "-o", run)
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said
    assert "a checkpoint is kept" in said and "hint: run the same command again" in said
    assert 2 <= metrics(run)[-1]["step"] < 60
    shutil.copytree(run, whole)
    for name in ("checkpoints", "metrics.jsonl"):
        path = whole / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for target in (run, whole):
        assert pathfm(*arguments, "-o", target).returncode == 0
    assert losses(run) == losses(whole)
    result = "teacher.safetensors"
    assert (run / result).read_bytes() == (whole / result).read_bytes()


@pytest.fixture(scope="module")
def sixty(tissue):
    """A run of 60 steps left alone, and how it is started."""
    arguments = ["pretrain", tissue, "--recipe", "tiny", *micro(train__steps=60)]
    whole = tissue.with_name("sixty")
    assert pathfm(*arguments, "-o", whole).returncode == 0
    return whole, arguments


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "workers"),
    [(signal.SIGUSR1, False, 0), (signal.SIGTERM, True, 1), (signal.SIGUSR1, True, 1)],
)
def test_a_signal_to_launcher_or_group_leaves_75_then_the_same_run(
    sixty, tmp_path, number, group, workers
):
    whole, arguments = sixty
    run = tmp_path / "run"
    process = start(*arguments, "--workers", workers, "-o", run, start_new_session=True)
    wait_for_step(run, 2, process)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said
    assert "a checkpoint is kept" in said and "died" not in said
    assert 2 <= metrics(run)[-1]["step"] < 60
    assert pathfm(*arguments, "-o", run).returncode == 0
    assert losses(run) == losses(whole)
    result = "teacher.safetensors"
    assert (run / result).read_bytes() == (whole / result).read_bytes()


def start(*arguments, **options):
    return subprocess.Popen(
        [*PATHFM, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_step(run, step, process):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(metrics_so_far(run)) >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached")


def metrics_so_far(run):
    return (run / "metrics.jsonl").read_text().split("\n")[:-1]


@pytest.mark.slow
def test_workers_of_a_killed_launcher_stop_and_the_run_goes_on(tissue, tmp_path):
    run = tmp_path / "killed"
    arguments = ["pretrain", tissue, "--recipe", "tiny", *micro(train__steps=200), "-o", run]
    process = start(*arguments, "--procs", 2)
    wait_for_step(run, 3, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while workers_of(run) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not workers_of(run)
    assert 3 <= metrics(run)[-1]["step"] < 200
    assert pathfm(*arguments, "--procs", 2).returncode == 0
    assert [row["step"] for row in metrics(run)] == list(range(1, 201))


def workers_of(run):
    """Processes of this run that are still alive, from /proc."""
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc to see other processes")
    alive = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if "pathfm_cli.pretrain.worker" in line and str(run) in line:
            alive.append(entry.name)
    return alive


def losses(run):
    return [(row["step"], row["loss"], row["lr"]) for row in metrics(run)]


def start_nodes(tissue, run, *of_the_second):
    """Two launchers that train together, the second one first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = ["--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{probe.getsockname()[1]}"]
    command = ["pretrain", tissue, "--recipe", "tiny", *micro(), "-o", run, *meet]
    return [start(*command, "--node-rank", rank, *(of_the_second * rank)) for rank in (1, 0)]


@pytest.mark.slow
def test_two_nodes_with_different_settings_are_refused(tissue, tmp_path):
    launchers = start_nodes(tissue, tmp_path / "apart", "--set", "optim.base_lr=1e-3")
    for launcher in launchers:
        _, said = launcher.communicate(timeout=300)
        assert (launcher.returncode, "with different settings" in said) == (2, True), said


@pytest.mark.slow
def test_two_nodes_train_as_one(finished, tissue, tmp_path):
    run = tmp_path / "nodes"
    launchers = start_nodes(tissue, run)
    said = [launcher.communicate(timeout=300) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert json.loads(said[0][0])["path"] == json.loads(said[1][0])["path"]
    for one, two in zip(metrics(finished[0]), metrics(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_plain_torchrun_starts_the_same_run(finished, tissue, tmp_path):
    run = tmp_path / "torchrun"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    verb = ["--nproc-per-node", "2", "-m", "pathfm_cli", "pretrain", tissue, "-o", run]
    chosen = ["--seed", 0, "--subset", 1, "--distinct-patches", 0, "--init", "scratch"]
    command = [*torchrun, *verb, "--recipe", "tiny", *micro(), *chosen, "--overwrite"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    [record] = done.stdout.splitlines()
    assert json.loads(record)["path"] == f"{run}/teacher.safetensors"
    ours, theirs = ((path / "config.toml").read_bytes() for path in (finished[0], run))
    assert ours == theirs
    for one, two in zip(metrics(finished[0]), metrics(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_shell_loop_around_it_keeps_its_list(finished, tissue, tmp_path):
    """Training processes must not read the list of the loop they run in."""
    script = f"""
    printf '%s\\n' 0 1 | while read seed; do
        pathfm pretrain {tissue} --recipe tiny {" ".join(micro())} \
            --seed $seed -o {tmp_path}/loop-$seed -q || exit 9
    done"""
    done = subprocess.run(
        ["sh", "-c", script], env=commands(), capture_output=True, text=True, timeout=120
    )
    paths = [f"{tmp_path}/loop-{seed}/teacher.safetensors" for seed in (0, 1)]
    assert (done.returncode, done.stdout.split()) == (0, paths), done.stderr
