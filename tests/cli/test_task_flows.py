"""`--task` in embed, probe and segment, and `pathfm tasks`: real processes on tiny trees."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from processes import pathfm
from scipy import io as scipy_io

MODEL = ("--model", "random/vit_tiny_patch16_224")
MHIST = ("--task", "mhist", "--data", "mhist", "--partial")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of MHIST, light or dark by class, and CoNSeP with one image a split."""
    folder = tmp_path_factory.mktemp("flows")
    (folder / "mhist" / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        label = ("SSA", "HP")[number % 2]
        noise = rng.integers(0, 40, (32, 32, 3)) + 150 * (number % 2)
        name = f"MHIST_{number:03}.png"
        Image.fromarray(noise.astype(np.uint8)).save(folder / "mhist" / "images" / name)
        rows.append((name, label, "train" if number < 8 else "test"))
    columns = ["Image Name", "Majority Vote Label", "Partition"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(folder / "mhist" / "annotations.csv")
    for split in ("Train", "Test"):
        for part in ("Images", "Labels"):
            (folder / "consep" / split / part).mkdir(parents=True)
        types = np.zeros((224, 224))
        types[:112] = 6
        image = np.where(types[..., None] > 0, 60, 220) + rng.integers(0, 9, (224, 224, 3))
        name = folder / "consep" / split
        Image.fromarray(image.astype(np.uint8)).save(name / "Images" / "one.png")
        scipy_io.savemat(name / "Labels" / "one.mat", {"type_map": types})
    return folder


def test_probe_makes_the_embeddings_once_and_reads_them_then(folder: Path) -> None:
    done = pathfm("probe", *MHIST, *MODEL, "--runs", "1", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["balanced_accuracy"] > 0.9
    assert done.stderr.count("mhist is not complete") == 1 and "chosen on test" in done.stderr
    made = list((folder / "mhist" / "pathfm-embeddings").iterdir())
    assert len(made) == 1
    frame = pl.read_parquet(made[0])
    assert frame["split"].value_counts(sort=True).rows() == [("train", 8), ("test", 4)]
    before = made[0].stat().st_mtime_ns
    again = pathfm("probe", *MHIST, *MODEL, "--runs", "1", "--json", cwd=folder)
    assert again.returncode == 0 and made[0].stat().st_mtime_ns == before
    scores = [json.loads(one.stdout)["metrics"]["balanced_accuracy"] for one in (done, again)]
    assert scores[0] == scores[1]


def test_embed_writes_the_same_where_it_is_told(folder: Path) -> None:
    done = pathfm("embed", *MHIST, *MODEL, "-o", "e.parquet", cwd=folder)
    assert done.returncode == 0, done.stderr
    frame = pl.read_parquet(folder / "e.parquet")
    assert frame["id"][0] == "images/MHIST_000.png" and frame["embedding"].null_count() == 0
    assert frame.columns == ["id", "label", "split", "embedding", "error"]


def test_dry_runs_touch_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    plan = json.loads(pathfm("probe", *MHIST, "-n", cwd=folder).stdout)
    assert plan["images"] == {"test": 4, "train": 8} and plan["complete"] is False
    dry = ("-o", "new.parquet", "-n", "--measure-s", "0")
    plan = json.loads(pathfm("embed", *MHIST, *MODEL, *dry, cwd=folder).stdout)
    assert plan["images"] == 12
    assert sorted(folder.rglob("*")) == before


def test_segment_takes_consep(folder: Path) -> None:
    flags = ("--task", "consep", "--data", "consep", "--partial", "--crops", "4", "--epochs", "1")
    done = pathfm("segment", *flags, *MODEL, "-o", "seg", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert (metrics["n_train"], metrics["n_test"], metrics["classes"]) == (1, 1, 5)
    # Type 6 is one of the three that are spindle-shaped in the paper.
    assert "dice:spindle-shaped" in metrics and "dice:other" not in metrics


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("probe", "--task", "mhist", "--data", "mhist", *MODEL), 3, "is not complete"),
        (("probe", "--task", "mhsit", *MODEL), 2, "no data set 'mhsit'"),
        (("probe", *MHIST), 2, "probe needs a model"),
        (("probe", "e.parquet", *MHIST, *MODEL), 2, "e.parquet does not go with --task"),
        (("probe", "e.parquet", "--data", "mhist"), 2, "go with --task"),
        (("embed", *MHIST, *MODEL, "--label", "x", "-o", "x.parquet"), 2, "--label does not go"),
        (("embed", *MHIST, *MODEL, "--embedding", "mean", "-o", "x"), 2, "mean is none of cls,"),
        (("embed", "--partial", *MODEL, "-o", "x.parquet"), 2, "go with --task"),
        (("segment", *MHIST, *MODEL, "-o", "x"), 2, "mhist has no label maps"),
        (("segment", *MODEL, "-o", "x"), 2, "--images or --task"),
        (("tasks", "mhist", "--download"), 2, "cannot be downloaded by a program"),
        (("tasks", "bach", "--download", "--data", "b"), 2, "licence of bach was not accepted"),
        (("tasks", "pcam", "--download", "--mirror", "ftp://x"), 2, "no http or https address"),
        (("tasks", "mhist", "--data", "absent"), 3, "is missing"),
    ],
)
def test_wrong_requests(folder: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = pathfm(*arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if "is under" not in line]
    assert lines[-2].startswith("pathfm: ") and message in lines[-2]
    assert lines[-1].startswith("hint: ") and done.stdout == ""
