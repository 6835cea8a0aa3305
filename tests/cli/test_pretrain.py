"""`pathfm pretrain` as a real process: runs, resumes, ranks, signals, wrong input."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
from processes import pathfm as forked

SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
PATHFM = [sys.executable, "-m", "pathfm_cli"]
MICRO = {
    "train.steps": 8,
    "train.steps_per_epoch": 2,
    "train.batch_size": 4,
    "train.checkpoint_every": 100,
    "train.probe_patches": 6,
    "data.size_px": 48,
    "crops.global_size_px": 32,
    "crops.local_size_px": 16,
    "crops.local_count": 2,
    "model.patch_size": 8,
    "model.embed_dim": 24,
    "model.depth": 2,
    "model.drop_path_rate": 0.0,
    "head.hidden": 32,
    "head.bottleneck": 16,
    "head.prototypes": 64,
}


def micro(**changes):
    values = {**MICRO, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def pathfm(*arguments, **options):
    return subprocess.run(
        [*PATHFM, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options
    )


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [(row["step"], row["loss"], row["lr"]) for row in metrics(run)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="module")
def tissue(folder):
    assert pathfm("index", SLIDE, "-o", folder / "s.parquet").returncode == 0
    assert pathfm("mask", folder / "s.parquet", "-o", folder / "t.parquet").returncode == 0
    return folder / "t.parquet"


@pytest.fixture(scope="module")
def finished(folder, tissue):
    """A finished run, started from a record in a pipe, and what the process said."""
    run = folder / "run"
    header = {"schema": "pathfm.artifact/1", "kind": "tissue", "path": str(tissue)}
    done = pathfm("pretrain", "--recipe", "tiny", *micro(), "-o", run, input=json.dumps(header))
    return run, done


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


def test_two_ranks_train_as_one(finished, tissue, folder):
    run = folder / "two"
    done = pathfm("pretrain", tissue, "--recipe", "tiny", *micro(), "-o", run, "--procs", 2)
    assert done.returncode == 0, done.stderr
    for one, two in zip(metrics(finished[0]), metrics(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["teacher_entropy"] == pytest.approx(one["teacher_entropy"], rel=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_a_batch_in_parts_of_slides_that_meet_a_condition(finished, tissue, folder):
    """The one slide meets it, so the patches are the same; parts and ranks only change rounding."""
    run = folder / "parts"
    choice = ["--where", "vendor == 'aperio' and mpp < 1", "--accumulate", 2, "--procs", 2]
    done = pathfm("pretrain", tissue, "--recipe", "tiny", *micro(), *choice, "-o", run)
    assert done.returncode == 0, done.stderr
    assert "batch 4 = 2 processes x 2 parts x 1" in done.stderr
    assert "where = \"vendor == 'aperio' and mpp < 1\"" in (run / "config.toml").read_text()
    for one, two in zip(metrics(finished[0]), metrics(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_the_second_phase_goes_on_from_a_run(finished, tissue, folder):
    """Half the peak, heads and student of the first run, and its weights in the parents."""
    recipe = folder / "two.toml"
    tiny = resources.files("pathfm_cli.pretrain.recipes") / "tiny.toml"
    second = [
        *("[phase2.start]", 'student = "own"', 'heads = "keep"', 'centre = "keep"'),
        *("[phase2.optim]", "lr_factor = 0.5", "warmup_epochs = 0.0"),
    ]
    recipe.write_text("\n".join([tiny.read_text(), *second]))
    run = folder / "phase2"
    cached = ["--distinct-patches", 8, "--patch-cache", folder / "pixels"]
    arguments = ["pretrain", tissue, "--recipe", recipe, *micro(), "--phase", 2, *cached]
    done = pathfm(*arguments, "--init", finished[0], "-o", run)
    assert done.returncode == 0, done.stderr
    assert "peak lr 3.125e-05 = base 0.004 x batch 4 / 256 x 0.5" in done.stderr
    assert f"first weights: {finished[0]}" in done.stderr
    assert metrics(run)[0]["lr"] == pytest.approx(3.125e-5)
    identity = json.loads((run / "run.json").read_text())
    assert [parent.partition(":")[0] for parent in identity["parents"]].count("weights") > 4
    (pixels,) = (folder / "pixels").iterdir()
    assert pixels.stat().st_size == 8 * (48 * 48 * 3 + 4)
    without = pathfm(*arguments, "-o", folder / "none")
    refused(without, 2, "goes on from the run of the one before", "--phase 2 --init run1/")
    gone = pathfm(*arguments, "--init", "gone/", "-o", folder / "none")
    refused(gone, 3, "gone/, to start from, does not exist", "the path of a run or checkpoint")


def test_sigterm_leaves_75_and_the_same_command_goes_on(tissue, folder):
    arguments = ["pretrain", tissue, "--recipe", "tiny", *micro(train__steps=60)]
    run, whole = folder / "stopped", folder / "whole"
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
def sixty(tissue, folder):
    """A run of 60 steps left alone, and how it is started."""
    arguments = ["pretrain", tissue, "--recipe", "tiny", *micro(train__steps=60)]
    assert pathfm(*arguments, "-o", folder / "sixty").returncode == 0
    return folder / "sixty", arguments


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


@pytest.mark.slow
def test_two_nodes_train_as_one(finished, tissue, folder):
    run = folder / "nodes"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["pretrain", tissue, "--recipe", "tiny", *micro(), "-o", run, "--nnodes", 2]
    launchers = [
        start(*command, "--rdzv-endpoint", endpoint, "--node-rank", rank) for rank in (1, 0)
    ]
    said = [launcher.communicate(timeout=300) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert json.loads(said[0][0])["path"] == json.loads(said[1][0])["path"]
    for one, two in zip(metrics(finished[0]), metrics(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


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
def test_workers_of_a_killed_launcher_stop_and_the_run_goes_on(tissue, folder):
    run = folder / "killed"
    arguments = ["pretrain", tissue, "--recipe", "tiny", *micro(train__steps=400), "-o", run]
    process = start(*arguments, "--procs", 2)
    wait_for_step(run, 3, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while workers_of(run) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not workers_of(run)
    assert pathfm(*arguments, "--procs", 2).returncode == 0
    assert [row["step"] for row in metrics(run)] == list(range(1, 401))


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


@pytest.mark.slow
def test_a_plain_torchrun_starts_the_same_run(finished, tissue, folder):
    run = folder / "torchrun"
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
def test_a_shell_loop_around_it_keeps_its_list(finished, tissue, folder):
    """Training processes must not read the list of the loop they run in."""
    script = f"""
    printf '%s\\n' 0 1 | while read seed; do
        {sys.executable} -m pathfm_cli pretrain {tissue} --recipe tiny {" ".join(micro())} \
            --seed $seed -o {folder}/loop-$seed -q || exit 9
    done"""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120)
    paths = [f"{folder}/loop-{seed}/teacher.safetensors" for seed in (0, 1)]
    assert (done.returncode, done.stdout.split()) == (0, paths), done.stderr


def refused(done, code, message, hint):
    """One sentence, one hint, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith(("pathfm: ", "hint: "))]
    assert len(said) == 2 and said[0].startswith("pathfm: ") and said[1].startswith("hint: ")
    assert message in said[0] and hint in said[1]
    assert done.stdout == "" and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--recipe", "tinny"], "no recipe 'tinny'", "did you mean tiny?"),
        (["--recipe", "tiny", "--set", "optim.lr=1"], "Unknown setting optim.lr", "did you mean"),
        (["--recipe", "tiny", "--set", "train.steps"], "not of the form", "--set train.steps=100"),
        (["--recipe", "tiny", "--set", "model.arch=vit_tin"], "no model called", "did you mean"),
        (["--recipe", "tiny", "--device", "tpu"], "There is no device 'tpu'", "--device auto"),
        (["--recipe", "tiny", "--nnodes", "2"], "need a place to meet", "--rdzv-endpoint HOST:"),
        (["--recipe", "tiny", "--node-rank", "1"], "Node 1 of 1 is none", "--node-rank 0 to 0"),
        (
            ["--recipe", "tiny", "--overwrite", "--nnodes", "2", "--rdzv-endpoint", "a:1"],
            *("one could overwrite", "rm -r "),
        ),
        (["--recipe", "tiny", "--phase", "2"], "no phase 2", "leave --phase out"),
        (["--recipe", "tiny", "--where", "stain ="], "cannot be read", "--where"),
        (["--recipe", "tiny", "--seed", str(2**63)], "less than or equal to 922337203", "--help"),
        (["--recipe", "tiny", "--subset", "0"], "subset 0.0 is no share", "--subset 0.1"),
        (["--recipe", "tiny", "--accumulate", "3"], "cannot be taken in 3 parts", "--accumulate 2"),
        (["--recipe", "tiny", "--procs", "3"], "cannot be shared by 3", "train.batch_size=33"),
    ],
)
def test_wrong_settings_are_refused_before_stdin_is_read(tmp_path, arguments, message, hint):
    read, write = os.pipe()  # nobody ever writes: a process that reads would hang
    try:
        done = forked("pretrain", *arguments, "-o", tmp_path / "run", stdin=read)
    finally:
        os.close(read)
        os.close(write)
    refused(done, 2, message, hint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "every process the same stdin", "name the input"),
        (["t.parquet", "--gpus", 2], "torchrun has started the processes", "--nproc-per-node"),
        (["t.parquet", "--nnodes", 2], "torchrun has started the processes", "--nproc-per-node"),
    ],
)
def test_what_a_rank_of_torchrun_cannot_mean_is_refused(tmp_path, arguments, message, hint):
    started = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    done = forked("pretrain", *arguments, "--recipe", "tiny", "-o", tmp_path / "run", env=started)
    refused(done, 2, message, hint)


def test_another_recipe_does_not_touch_a_finished_run(finished, tissue):
    run, _ = finished
    before = (run / "teacher.safetensors").read_bytes()
    done = forked("pretrain", tissue, "--recipe", "tiny", *micro(train__steps=9), "-o", run)
    refused(done, 2, "train.steps=8 (now 9)", "--overwrite")
    assert (run / "teacher.safetensors").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tissue, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "checkpoints").mkdir()
    for flags in ([], ["--overwrite"]):
        done = forked("pretrain", tissue, "--recipe", "tiny", "-o", tmp_path, *flags)
        refused(done, 2, "is no run of pathfm", "another -o")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "thesis.tex"]


def test_a_missing_or_foreign_input_is_refused(tmp_path, folder, tissue):
    gone = forked("pretrain", tmp_path / "t.parquet", "--recipe", "tiny", "-o", tmp_path / "run")
    assert gone.returncode == 3 and "does not exist" in gone.stderr
    wrong = forked("pretrain", folder / "s.parquet", "--recipe", "tiny", "-o", tmp_path / "run")
    refused(wrong, 3, "is of kind slides; tissue or patches is needed", "pathfm mask")
    empty = forked("pretrain", "--recipe", "tiny", "-o", tmp_path / "run", stdin="")
    refused(empty, 3, "stdin ended without", "did the command on the left fail?")
    assert not (tmp_path / "run").exists()


def test_tissue_that_gives_no_patch_ends_the_workers_with_a_sentence(tissue, tmp_path):
    run = tmp_path / "run"
    arguments = ["pretrain", tissue, "--recipe", "tiny", "-o", run]
    done = forked(*arguments, *micro(data__mpp="[0.01]"))
    refused(done, 2, "No slide can give a patch", "coarser --mpp")
    fixed = forked(*arguments, *micro(train__steps=3), "--dry-run")
    assert fixed.returncode == 0, "what failed before its first checkpoint is no clash"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--where", "nope == 1"], 2, "no column nope"),
        (["--where", "slide == 'x'"], 2, "meets"),
        (["--init", "TISSUE"], 2, "is no checkpoint"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(tissue, tmp_path, flags, code, message):
    flags = [str(tissue) if flag == "TISSUE" else flag for flag in flags]
    done = forked("pretrain", tissue, "--recipe", "tiny", "-o", tmp_path / "run", "-n", *flags)
    refused(done, code, message, "")


def test_dry_run_touches_nothing(tissue, tmp_path):
    run = tmp_path / "run"
    done = forked("pretrain", tissue, "--recipe", "dino-vits16", "-o", run, "-n", "--measure-s", 0)
    plan = json.loads(done.stdout)
    assert plan["encoder"] == "vit_small_patch16_224.dino, 21,665,664 parameters"
    assert plan["patches"] == 128_000_000 and plan["steps"] == "0 to 125000"
    assert plan["peak_lr"] == pytest.approx(2e-4)
    assert not run.exists()


def test_help_is_quick_and_leads_with_examples():
    script = (
        "import sys; from pathfm_cli.cli import app; app.run(['pretrain', '--help']);"
        "print(*[m for m in ('torch', 'numpy', 'polars', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pathfm pretrain tissue.parquet --recipe tiny -o run/" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


def test_labelled_images_are_checked_before_anything_starts(tissue, folder):
    table, run = folder / "labelled.csv", folder / "watched"
    table.write_text("path,label,split\n1.png,a,train\n2.png,b,train\n3.png,b,test\n")
    command = ["pretrain", tissue, "--recipe", "tiny", *micro(), "-o", run, "-n", "--watch"]
    assert forked(*command, table).returncode == 0
    absent = forked(*command, folder / "absent")
    assert absent.returncode == 3 and "absent is not there" in absent.stderr
    never = forked(*command, table, "--set", "train.watch_every=0")
    assert never.returncode == 2 and "train.watch_every=1000" in never.stderr
    assert not run.exists()
