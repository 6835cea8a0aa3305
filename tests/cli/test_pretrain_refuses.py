"""`pathfm pretrain` with wrong input: one sentence, a hint, an exit code, and nothing touched."""

import os

import pytest
from micro_runs import micro, refused
from processes import pathfm


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--recipe", "tinny"], "no recipe 'tinny'", "did you mean tiny?"),
        (["--recipe", "tiny", "--set", "optim.lr=1"], "Unknown setting optim.lr", "did you mean"),
        (["--recipe", "tiny", "--set", "train.steps"], "not of the form", "--set train.steps=100"),
        (["--recipe", "tiny", "--set", "model.arch=vit_tin"], "no model called", "did you mean"),
        (["--recipe", "tiny", "--device", "tpu"], "There is no device 'tpu'", "--device auto"),
        (["--recipe", "tiny", "--nnodes", "2"], "need a place to meet", "--rdzv-endpoint HOST:"),
        *(
            (
                ["--recipe", "tiny", "--nnodes", "2", "--rdzv-endpoint", f"h:{port}"],
                "a port from 1 to 65535",
                "HOST:29500",
            )
            for port in (0, 65536, -1)
        ),
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
        done = pathfm("pretrain", *arguments, "-o", tmp_path / "run", stdin=read)
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
    done = pathfm("pretrain", *arguments, "--recipe", "tiny", "-o", tmp_path / "run", env=started)
    refused(done, 2, message, hint)


def test_another_recipe_does_not_touch_a_finished_run(finished, tissue):
    run, _ = finished
    before = (run / "teacher.safetensors").read_bytes()
    done = pathfm("pretrain", tissue, "--recipe", "tiny", *micro(train__steps=9), "-o", run)
    refused(done, 2, "train.steps=8 (now 9)", "--overwrite")
    assert (run / "teacher.safetensors").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tissue, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "checkpoints").mkdir()
    for flags in ([], ["--overwrite"]):
        done = pathfm("pretrain", tissue, "--recipe", "tiny", "-o", tmp_path, *flags)
        refused(done, 2, "is no run of pathfm", "another -o")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "thesis.tex"]


def test_a_missing_or_foreign_input_is_refused(tmp_path, tissue):
    gone = pathfm("pretrain", tmp_path / "t.parquet", "--recipe", "tiny", "-o", tmp_path / "run")
    assert gone.returncode == 3 and "does not exist" in gone.stderr
    wrong = pathfm(
        "pretrain", tissue.with_name("s.parquet"), "--recipe", "tiny", "-o", tmp_path / "run"
    )
    refused(wrong, 3, "is of kind slides; tissue or patches is needed", "pathfm mask")
    empty = pathfm("pretrain", "--recipe", "tiny", "-o", tmp_path / "run", stdin="")
    refused(empty, 3, "stdin ended without", "did the command on the left fail?")
    assert not (tmp_path / "run").exists()


def test_tissue_that_gives_no_patch_ends_the_workers_with_a_sentence(tissue, tmp_path):
    run = tmp_path / "run"
    arguments = ["pretrain", tissue, "--recipe", "tiny", "-o", run]
    done = pathfm(*arguments, *micro(data__mpp="[0.01]"))
    refused(done, 2, "No slide can give a patch", "coarser --mpp")
    fixed = pathfm(*arguments, *micro(train__steps=3), "-n", "--measure-s", 0)
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
    done = pathfm("pretrain", tissue, "--recipe", "tiny", "-o", tmp_path / "run", "-n", *flags)
    refused(done, code, message, "")


def test_labelled_images_are_checked_before_anything_starts(tissue, tmp_path):
    table, run = tmp_path / "labelled.csv", tmp_path / "watched"
    table.write_text("path,label,split\n1.png,a,train\n2.png,b,train\n3.png,b,test\n")
    command = ["pretrain", tissue, "--recipe", "tiny", *micro(), "-o", run, "-n"]
    command += ["--measure-s", 0, "--watch"]
    assert pathfm(*command, table).returncode == 0
    absent = pathfm(*command, tmp_path / "absent")
    assert absent.returncode == 3 and "absent is not there" in absent.stderr
    never = pathfm(*command, table, "--set", "train.watch_every=0")
    assert never.returncode == 2 and "train.watch_every=1000" in never.stderr
    assert not run.exists()
