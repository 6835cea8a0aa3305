"""`pathfm sample` as a process."""

import json
import os
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from processes import pathfm

from pathfm_cli import artifacts

ROOT = Path(__file__).parents[2]
DEMO_SLIDE = ROOT / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tissue of a real slide, and twenty patches of it."""
    folder = tmp_path_factory.mktemp("sample")
    assert pathfm("index", DEMO_SLIDE, "-o", "s.parquet", cwd=folder).returncode == 0
    assert pathfm("mask", "s.parquet", "-o", "t.parquet", cwd=folder).returncode == 0
    done = pathfm(
        *("sample", "t.parquet", "--n", "20", "--mpp", "0.25,0.5,1", "--size", "128"),
        *("-o", "p.parquet", "--preview", "pictures/sheet.png"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_weights_of_mpp_and_a_condition(made: Path) -> None:
    choice = [
        "--mpp",
        "0.5,1",
        "--mpp-weights",
        "0,1",
        "--where",
        "stain == None",
        "--subset",
        "0.5",
    ]
    done = pathfm("sample", "t.parquet", "--n", "8", *choice, "-o", "w.parquet", cwd=made)
    assert done.returncode == 0, done.stderr
    frame = pl.read_parquet(made / "w.parquet")
    assert frame["mpp"].to_list() == [1.0] * 8
    settings = artifacts.read_header(made / "w.parquet").settings
    assert (settings["where"], settings["subset"]) == ("stain == None", 0.5)


def test_it_prints_the_handle_and_writes_what_was_asked_for(made: Path) -> None:
    record = json.loads((made / "stdout").read_text())
    assert record == {
        "schema": "pathfm.artifact/1",
        "kind": "patches",
        "id": artifacts.read_header(made / "p.parquet", "patches").id,
        "path": str(made / "p.parquet"),
        "rows": 20,
        "failed": 0,
    }
    frame = pl.read_parquet(made / "p.parquet")
    assert frame.height == 20 and set(frame["mpp"]) == {0.5, 1.0}
    assert frame["tissue_fraction"].min() >= 0.4
    assert (made / "stderr").read_text() == (
        "pathfm: 1 slide (CMU-1-Small-Region) gives no patch at mpp 0.25:"
        " the scan is too coarse for this mpp\n"
    )
    assert Image.open(made / "pictures" / "sheet.png").format == "PNG"


def test_a_grid_covers_the_tissue_once(made: Path) -> None:
    """Cells of 128 px at 1 um/px that just touch, each with at least half tissue."""
    arguments = ("--grid", "--mpp", "1", "--size", "128", "--min-tissue", "0.5")
    done = pathfm("sample", "t.parquet", *arguments, "-o", "g.parquet", cwd=made)
    assert done.returncode == 0, done.stderr
    table = artifacts.read_table(made / "g.parquet")
    area_mm2 = (table.frame["tissue_fraction"] * 0.128**2).sum()
    tissue_mm2 = artifacts.read_table(made / "t.parquet").frame["tissue_area_mm2"][0]
    assert 0.6 * tissue_mm2 < area_mm2 <= tissue_mm2
    assert table.header.settings["grid"] == {"stride_px": 128}


def test_a_rerun_is_up_to_date_and_still_draws(made: Path, tmp_path: Path) -> None:
    again = pathfm(
        *("sample", "t.parquet", "--n", "20", "--mpp", "0.25,0.5,1", "--size", "128"),
        *("-o", "p.parquet", "--preview", tmp_path / "again.png", "-q"),
        cwd=made,
    )
    assert again.returncode == 0 and again.stdout == f"{made / 'p.parquet'}\n"
    assert "pathfm: p.parquet is up to date" in again.stderr
    assert (tmp_path / "again.png").read_bytes() == (made / "pictures/sheet.png").read_bytes()


def test_the_same_seed_gives_the_same_file_through_a_pipe(made: Path) -> None:
    record = json.dumps(artifacts.read_header(made / "t.parquet").record(made / "t.parquet"))
    options = ("--n", "20", "--mpp", "0.25,0.5,1", "--size", "128")
    piped = pathfm("sample", *options, "-o", "again.parquet", cwd=made, stdin=record)
    assert piped.returncode == 0, piped.stderr
    assert (made / "again.parquet").read_bytes() == (made / "p.parquet").read_bytes()
    other = pathfm("sample", "t.parquet", *options, "--seed", "1", "-o", "o.parquet", cwd=made)
    assert other.returncode == 0
    assert not pl.read_parquet(made / "o.parquet").equals(pl.read_parquet(made / "p.parquet"))


def test_a_dry_run_touches_nothing(made: Path, tmp_path: Path) -> None:
    done = pathfm("sample", made / "t.parquet", "--grid", "-o", "g.parquet", "-n", cwd=tmp_path)
    assert done.returncode == 0 and os.listdir(tmp_path) == []
    plan = json.loads(done.stdout)
    assert plan["slides_that_can_give_patches"] == 1 and plan["writes"].endswith("g.parquet")


MAGNIFICATIONS = "um/px: 40x, 20x, 10x, 5x are about --mpp 0.25,0.5,1,2"
WRONG = {
    "a magnification": (
        ["t.parquet", "--n", "5", "--mpp", "40x", "-o", "x.parquet"],
        2,
        "--mpp 40x is no list of numbers.",
        MAGNIFICATIONS,
    ),
    "a magnification without its x": (
        ["t.parquet", "--n", "5", "--mpp", "20", "-o", "x.parquet"],
        2,
        "--mpp 20 looks like a magnification.",
        MAGNIFICATIONS,
    ),
    "neither a number nor a grid": (
        ["t.parquet", "-o", "x.parquet"],
        2,
        "Name either a number of random patches or a grid.",
        "--n 1000, or --grid",
    ),
    "a condition that no slide meets": (
        ["t.parquet", "--n", "5", "--where", "vendor == 'zeiss'", "-o", "x.parquet"],
        2,
        "None of the 1 slides meets \"vendor == 'zeiss'\".",
        "vendor holds aperio",
    ),
    "weights that are no numbers": (
        ["t.parquet", "--n", "5", "--mpp", "0.5,1", "--mpp-weights", "1,x", "-o", "x.parquet"],
        2,
        "--mpp-weights 1,x is no list of numbers.",
        "a number for each --mpp: --mpp-weights 1,2,2,1",
    ),
    "a grid with a seed": (
        ["t.parquet", "--grid", "--seed", "2", "-o", "x.parquet"],
        2,
        "A grid takes every cell: it has no seed, strategy or weights.",
        "--n 1000",
    ),
    "more patches than a file holds": (
        ["t.parquet", "--n", "99999999999999", "-o", "x.parquet"],
        2,
        "n is 99999999999999; it is from 1 to 1,000,000,000.",
        "--n 1000",
    ),
    "a strategy beside weights": (
        ["t.parquet", "--n", "5", "--strategy", "area", "--weights", "mpp", "-o", "x.parquet"],
        2,
        "--strategy area and --weights mpp contradict each other.",
        "leave one out",
    ),
    "more than all tissue": (
        ["t.parquet", "--n", "5", "--min-tissue", "40", "-o", "x.parquet"],
        2,
        "min_tissue 40.0 is no share of an area.",
        "--min-tissue 0.4",
    ),
    "an unknown strategy": (
        ["t.parquet", "--n", "5", "--strategy", "best", "-o", "x.parquet"],
        2,
        "strategy best is none of uniform, area, column.",
        "--strategy area",
    ),
    "a column of weights that is not there": (
        ["t.parquet", "--n", "5", "--weights", "tissue_area_mm", "-o", "x.parquet"],
        2,
        "The slides have no column tissue_area_mm for weights.",
        "did you mean tissue_area_mm2?",
    ),
    "a resolution that no slide has": (
        ["t.parquet", "--n", "5", "--mpp", "0.1", "-o", "x.parquet"],
        2,
        "No slide can give a patch: CMU-1-Small-Region at mpp 0.1: the scan is too coarse",
        "name a coarser --mpp, a smaller --size or a lower --min-tissue",
    ),
    "an output made with other settings": (
        ["t.parquet", "--n", "21", "--mpp", "0.25,0.5,1", "--size", "128", "-o", "p.parquet"],
        2,
        "p.parquet was made with random.n=20 (now 21).",
        "another -o, or --overwrite to replace it",
    ),
    "slides where tissue is needed": (
        ["s.parquet", "--n", "5", "-o", "x.parquet"],
        3,
        "s.parquet is of kind slides; tissue is needed here.",
        "`pathfm mask` writes tissue",
    ),
    "a stride without a grid": (
        ["t.parquet", "--n", "5", "--stride", "5", "-o", "x.parquet"],
        2,
        "Only a grid has a stride.",
        "--grid",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "sentence", "hint"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_sentence_and_a_hint(
    made: Path, arguments: list[str], code: int, sentence: str, hint: str
) -> None:
    done = pathfm("sample", *arguments, cwd=made)
    assert done.returncode == code and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith(f"pathfm: {sentence}") and second == f"hint: {hint}"
    assert not (made / "x.parquet").exists()


def test_an_empty_pipe_is_exit_3(made: Path) -> None:
    done = pathfm("sample", "--n", "5", "-o", "x.parquet", cwd=made, stdin="")
    assert done.returncode == 3
    assert done.stderr.startswith("pathfm: stdin ended without a tissue artifact.\nhint: ")
