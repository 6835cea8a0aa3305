"""`embed --dry-run`: slides, bytes, rates and duration, told from a trial that writes nothing."""

import json
from pathlib import Path

import pytest
from processes import pathfm

from pathfm_cli import cluster

DEMO = Path(cluster.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"
EMBED = ("--model", "random/test_vit", "-o", "e.parquet", "-n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    for name in "ab":
        (folder / f"{name}.svs").symlink_to(DEMO)
    grid = ("--grid", "--mpp", "2", "--size", "64")
    for words in (
        ("index", "a.svs", "b.svs", "-o", "s.parquet"),
        ("mask", "s.parquet", "--method", "otsu", "-o", "t.parquet"),
        ("sample", "t.parquet", *grid, "-o", "p.parquet"),
    ):
        assert pathfm(*words, cwd=folder).returncode == 0
    return folder


def test_a_measured_plan_adds_up(folder: Path) -> None:
    flags = ("--measure-s", "0.5", "--batch-size", "4", "--workers", "1")
    plan = json.loads(pathfm("embed", "p.parquet", *EMBED, *flags, cwd=folder).stdout)
    read, encode = plan["read_patches_per_s"], plan["compute_patches_per_s"]
    seconds = plan["patches"] * (1 / read + 1 / encode)  # on a CPU one after the other
    assert plan["duration_s"] == pytest.approx(seconds, abs=1)
    assert (plan["slides"], plan["batch"]) == (2, 4)
    assert plan["limit"] == ("decode" if read < encode else "compute")
    assert "tried_on" not in plan and not (folder / "e.parquet").exists()


def test_bytes_need_no_trial(folder: Path) -> None:
    plan = json.loads(pathfm("embed", "p.parquet", *EMBED, "--measure-s", "0", cwd=folder).stdout)
    assert plan["bytes"] > plan["requests"] >= plan["patches"] > 10
    assert "duration_s" not in plan


def test_a_spread_plan_says_that_it_was_tried_alone(folder: Path) -> None:
    pytest.importorskip("distributed")
    flags = ("--measure-s", "0.1", "--dask", "tcp://nowhere:8786")
    plan = json.loads(pathfm("embed", "p.parquet", *EMBED, *flags, cwd=folder).stdout)
    assert plan["tried_on"] == "this process alone; the work will be spread"


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1e9"])
def test_times_that_are_none(folder: Path, seconds: str) -> None:
    done = pathfm("embed", "p.parquet", *EMBED, "--measure-s", seconds, cwd=folder)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
