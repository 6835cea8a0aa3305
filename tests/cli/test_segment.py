from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
from PIL import Image
from processes import pathfm

MODEL = ("--model", "random/vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment")
    rng = np.random.default_rng(0)
    for number in range(3):
        label = np.zeros((224, 240), np.uint16)
        label[: 100 + 10 * number, :100] = 300
        shade = 230 - 150 * (label[..., None] > 0) + rng.integers(-9, 9, (224, 240, 3))
        Image.fromarray(shade.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}-label.png")
    frame = pl.DataFrame(
        {
            "id": ["a", "b", "c"],
            "image": ["0.png", "1.png", "2.png"],
            "label": ["0-label.png", "1-label.png", "2-label.png"],
            "split": ["train", "train", "test"],
        }
    )
    frame.write_csv(folder / "index.csv")
    frame.drop("label").write_csv(folder / "unlabelled.csv")
    frame.with_columns(split=pl.lit("train")).write_csv(folder / "untested.csv")
    others = frame.with_columns(id=pl.lit("v") + pl.col("id"), split=pl.lit("val"))
    pl.concat([frame, others]).write_csv(folder / "others.csv")
    broken = pl.concat([frame, frame[:1].with_columns(id=pl.lit("d"), image=pl.lit("no.png"))])
    broken.write_csv(folder / "broken.csv")
    (folder / "taken").mkdir()
    (folder / "taken" / "notes.txt").write_text("mine")
    return folder


SHORT = ("--instances", "--crops", "8", "--epochs", "20", *MODEL)


def test_scores_maps_and_rerun(folder):
    arguments = ("segment", "--images", "index.csv", *SHORT, "-o", "out")
    done = pathfm(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["kind"] == "scores"
    assert record["path"] == str(folder / "out" / "scores.parquet")
    assert record["metrics"]["dice_micro_foreground"] > 0.5
    assert Image.open(folder / "out" / "predictions" / "c.png").size == (240, 224)
    again = pathfm(*arguments, "-q", cwd=folder)
    assert again.returncode == 0 and "up to date" in again.stderr
    assert again.stdout == record["path"] + "\n"
    other = pathfm(*arguments, "--seed", "1", cwd=folder)
    assert other.returncode == 2 and "pathfm: out/scores.parquet was made with" in other.stderr


def test_a_broken_image_is_a_row_and_exit_4(folder):
    done = pathfm("segment", "--images", "broken.csv", *SHORT, "-o", "partial", cwd=folder)
    assert done.returncode == 4, done.stderr
    assert "1 of 4 images failed" in done.stderr and "d: the file does not exist" in done.stderr
    assert json.loads(done.stdout)["failed"] == 1


def test_dry_run(folder):
    done = pathfm("segment", "--images", "index.csv", *SHORT, "-o", "new", "-n", cwd=folder)
    plan = json.loads(done.stdout)
    assert plan["images"] == {"train": 2, "test": 1}
    assert (plan["crops"], plan["epochs"], plan["size_px"], plan["stride_px"]) == (8, 20, 224, 194)
    assert not (folder / "new").exists()


def test_what_is_left_out_is_told(folder):
    done = pathfm("segment", "--images", "others.csv", *SHORT, "-o", "new", "-n", cwd=folder)
    assert done.returncode == 0
    assert done.stderr == "pathfm segment: 3 images are left out: their split is val\n"
    (folder / "odd").mkdir()
    for split in ("train", "test", "val"):
        for part in ("images", "labels"):
            (folder / "odd" / split / part).mkdir(parents=True)
            shutil.copy(folder / "0.png", folder / "odd" / split / part / "a.png")
    (folder / "odd" / "test" / "images" / "a.gif").write_text("")
    done = pathfm("segment", "--images", "odd", *SHORT, "-o", "new", "-n", cwd=folder)
    assert done.stderr == (
        "pathfm segment: 2 entries of odd are left out: val, test/images/a.gif\n"
    )


def test_runs_of_mask2former_are_listed(folder):
    pytest.importorskip("transformers", reason="pathfm[segment] is not installed")
    flags = ("--decoder", "mask2former", "--runs", "2", "--size", "112", "--stride", "112")
    done = pathfm(
        *("segment", "--images", "index.csv", "--instances", "--crops", "8", "--epochs", "1"),
        *(*MODEL, *flags, "--features", "pre-norm", "--json", "-o", "queries"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["attempts"] == 2
    document = json.loads((folder / "queries" / "scores.json").read_text())
    assert [one["seed"] for one in document["attempts"]] == [0, 1]
    assert document["settings"]["features"] == "pre-norm"


def test_a_folder_with_named_classes(folder):
    for split in ("train", "test"):
        for part, suffix in (("images", ""), ("labels", "-label")):
            place = folder / "tree" / split / part
            place.mkdir(parents=True)
            shutil.copy(folder / f"0{suffix}.png", place / "a.png")
    arguments = ("segment", "--images", "tree", *MODEL, "-o", "new", "-n")
    plan = json.loads(pathfm(*arguments, "--classes", "none, gland", cwd=folder).stdout)
    assert plan["images"] == {"train": 1, "test": 1} and plan["classes"] == ["none", "gland"]
    (folder / "tree" / "classes.txt").write_text("background\ntumour\n")
    assert json.loads(pathfm(*arguments, cwd=folder).stdout)["classes"] == ["background", "tumour"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--images", "index.csv", *MODEL, "--decoder", "mask"), 2, "no decoder 'mask'"),
        (("--images", "index.csv", *MODEL, "--features", "norm"), 2, "no features 'norm'"),
        (("--images", "index.csv", *MODEL, "--crops", "0"), 2, "--crops 0"),
        (("--images", "index.csv", *MODEL, "--runs", "0"), 2, "--runs 0"),
        (("--images", "index.csv", *MODEL, "--size", "112"), 2, "194 px leave gaps"),
        (("--images", "index.csv", *MODEL, "--lr", "0"), 2, "--lr 0"),
        (("--images", "index.csv", *MODEL, "--lr", "1e38"), 2, "--lr 1e+38"),
        (("--images", "index.csv", *MODEL, "-o", "wrong/../index.csv/x"), 2, "cannot be written"),
        (("--images", "index.csv", *MODEL, "-o", "-"), 2, "stdout is none"),
        (("--images", "index.csv", *MODEL, "--instances", "--boundaries"), 2, "exclude each other"),
        (("--images", "index.csv", *MODEL, "--classes", "one"), 2, "no list of 2 to 64 classes"),
        (("--images", "taken", *MODEL), 3, "has no folder train/images"),
        (("--images", "index.csv", *MODEL, "--mpp", "0.5"), 2, "--mpp goes with --apply"),
        (("t.parquet", "--images", "index.csv", *MODEL), 2, "t.parquet goes with --apply"),
        (("--images", "index.csv", *MODEL, "--apply", "x"), 2, "--images does not go with --apply"),
        (("t.parquet", *MODEL, "--apply", "absent"), 3, "does not exist"),
        (("--images", "index.csv", *MODEL), 2, "holds the label 300"),
        (("--images", "index.csv"), 2, "needs a model"),
        (("--images", "unlabelled.csv", *MODEL), 2, "no column label"),
        (("--images", "untested.csv", *MODEL), 3, "the splits are train"),
        (("--images", "absent.csv", *MODEL), 3, "does not exist"),
        (("--images", "index.csv", *MODEL, "-o", "taken"), 2, "holds notes.txt already"),
    ],
)
def test_wrong_input(folder, arguments, code, message):
    chosen = arguments if "-o" in arguments else (*arguments, "-o", "wrong")
    done = pathfm("segment", *chosen, cwd=folder)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("pathfm: random/")]
    assert lines[0].startswith("pathfm: ") and message in lines[0]
    assert lines[1].startswith("hint: ") and len(lines) == 2
    assert not list(folder.glob("wrong*"))


def test_a_side_that_the_encoder_does_not_take_has_a_hint_that_works(folder):
    flags = ("--size", "100", "--stride", "100", "-o", "wrong")
    done = pathfm("segment", "--images", "index.csv", *SHORT, *flags, cwd=folder)
    assert done.returncode == 2 and "cannot take images of 100 px" in done.stderr
    assert done.stderr.endswith("hint: --size 96\n")
