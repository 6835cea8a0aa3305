"""`pathfm mask` as a process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas
import pytest
from PIL import Image
from processes import pathfm

from pathfm_cli import artifacts

ROOT = Path(__file__).parents[2]
DEMO_SLIDE = ROOT / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real slide, a broken one, their index, and a finished tissue artifact."""
    folder = tmp_path_factory.mktemp("mask")
    shutil.copy(DEMO_SLIDE, folder / "good.svs")
    (folder / "broken.svs").write_bytes(b"II*\0 and no more")
    assert pathfm("index", "good.svs", "broken.svs", "-o", "s.parquet", cwd=folder).returncode == 4
    shown = pathfm(
        *("mask", "s.parquet", "-o", "t.parquet", "--preview", "previews", "--geojson", "qupath"),
        cwd=folder,
    )
    (folder / "stdout").write_text(shown.stdout)
    (folder / "stderr").write_text(shown.stderr)
    assert shown.returncode == 0, shown.stderr
    return folder


def test_it_prints_the_handle_and_writes_what_was_asked_for(made: Path) -> None:
    record = json.loads((made / "stdout").read_text())
    header = artifacts.read_header(made / "t.parquet", "tissue")
    assert record == {
        "schema": "pathfm.artifact/1",
        "kind": "tissue",
        "id": header.id,
        "path": str(made / "t.parquet"),
        "rows": 2,
        "failed": 1,
    }
    assert (made / "stderr").read_text() == "pathfm: 1 of 2 slides carry errors from index\n"
    frame = geopandas.read_parquet(made / "t.parquet")
    assert frame["tissue_area_mm2"][1] == pytest.approx(0.62, abs=0.05)
    assert sorted(os.listdir(made / "previews")) == ["good.png", "index.html"]
    assert Image.open(made / "previews" / "good.png").size[1] == 1634
    collection = json.loads((made / "qupath" / "good.geojson").read_text())
    assert collection["features"][0]["properties"]["classification"]["name"] == "Tissue"


def test_a_rerun_is_up_to_date_and_still_draws(made: Path, tmp_path: Path) -> None:
    before = (made / "t.parquet").stat().st_mtime_ns
    again = pathfm(
        *("mask", "s.parquet", "-o", "t.parquet", "--geojson", tmp_path / "g", "-q"), cwd=made
    )
    assert again.returncode == 0 and again.stdout == f"{made / 't.parquet'}\n"
    assert "pathfm: t.parquet is up to date" in again.stderr
    assert (made / "t.parquet").stat().st_mtime_ns == before
    assert (tmp_path / "g" / "good.geojson").exists()


def test_a_correction_in_place_survives_the_same_command(made: Path, tmp_path: Path) -> None:
    command = ("mask", made / "s.parquet", "-o", "t.parquet", "--method", "otsu")
    command += ("--geojson", "q", "--preview", "p", "-q")
    assert pathfm(*command, cwd=tmp_path).returncode == 0
    assert pathfm(*command, cwd=tmp_path).returncode == 0
    (tmp_path / "q" / "good.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    again = pathfm(*command, cwd=tmp_path)
    assert again.returncode == 2 and again.stdout == ""
    assert again.stderr.startswith("pathfm: q/good.geojson was edited") and "hint" in again.stderr
    assert "[]" in (tmp_path / "q" / "good.geojson").read_text()


@pytest.mark.parametrize("option", ["--preview", "--geojson"])
def test_a_folder_that_cannot_be_made_is_found_before_the_work(
    made: Path, tmp_path: Path, option: str
) -> None:
    done = pathfm(
        *("mask", made / "s.parquet", "-o", "y.parquet", "--method", "otsu", option, "/proc/foo"),
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "/proc/foo" in done.stderr
    assert os.listdir(tmp_path) == []


def test_it_reads_a_record_or_a_path_from_stdin(made: Path) -> None:
    record = json.dumps(artifacts.read_header(made / "s.parquet").record(made / "s.parquet"))
    for text in (record, "s.parquet\n"):
        done = pathfm("mask", "-o", "piped.parquet", cwd=made, stdin=text)
        assert done.returncode == 0, done.stderr
    assert (made / "piped.parquet").read_bytes() == (made / "t.parquet").read_bytes()


def test_a_dry_run_touches_nothing(made: Path, tmp_path: Path) -> None:
    done = pathfm("mask", made / "s.parquet", "-o", "t.parquet", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and os.listdir(tmp_path) == []
    assert json.loads(done.stdout) == {
        "schema": "pathfm.plan/1",
        "slides": 2,
        "with_errors_from_index": 1,
        "already_done": 0,
        "writes": str(tmp_path / "t.parquet"),
    }


def test_a_slide_that_went_bad_since_index_is_a_row_and_exit_4(tmp_path: Path) -> None:
    for name in ("one.svs", "two.svs"):
        shutil.copy(DEMO_SLIDE, tmp_path / name)
    assert pathfm("index", "one.svs", "two.svs", "-o", "s.parquet", cwd=tmp_path).returncode == 0
    (tmp_path / "two.svs").write_bytes(b"gone")
    done = pathfm("mask", "s.parquet", "-o", "t.parquet", "--preview", "p", cwd=tmp_path)
    assert done.returncode == 4 and json.loads(done.stdout)["failed"] == 1
    assert "pathfm: 1 of 2 slides failed:\n  two: " in done.stderr
    assert sorted(os.listdir(tmp_path / "p")) == ["index.html", "one.png"]
    strict = pathfm("mask", "s.parquet", "-o", "u.parquet", "--max-failed", "0", cwd=tmp_path)
    assert strict.returncode == 1 and strict.stdout == ""
    assert "more than --max-failed 0" in strict.stderr and "hint: " in strict.stderr
    assert not (tmp_path / "u.parquet").exists()


WRONG = {
    "a method that does not exist": (
        ["s.parquet", "-o", "x.parquet", "--method", "magic"],
        2,
        "There is no method magic to find tissue.",
        "--method unet or otsu",
    ),
    "a resolution that is no thumbnail": (
        ["s.parquet", "-o", "x.parquet", "--method", "otsu", "--mpp", "0.1"],
        2,
        "mpp 0.1 is no thumbnail: between 0.5 and 64 um/px.",
        "--mpp 8",
    ),
    "annotations that are not there": (
        ["s.parquet", "-o", "x.parquet", "--annotations", "nowhere"],
        2,
        "nowhere holds no annotations.",
        "--annotations DIR with DIR/SLIDE.geojson",
    ),
    "a class that nobody drew": (
        ["s.parquet", "-o", "x.parquet", "--annotations", "qupath", "--include", "Tumr"],
        2,
        "No outline in qupath is of the class Tumr.",
        "there are: Tissue",
    ),
    "areas for annotations": (
        ["s.parquet", "-o", "x.parquet", "--annotations", "qupath", "--min-hole", "5"],
        2,
        "--annotations takes the place of --min-object, --min-hole and --tolerance.",
        "pathfm mask --help",
    ),
    "weights that are no network": (
        ["s.parquet", "-o", "x.parquet", "--weights", "t.parquet"],
        3,
        "t.parquet is of kind tissue; segmenter is needed here.",
        "`pathfm mask-train` writes segmenter",
    ),
    "a negative area": (
        ["s.parquet", "-o", "x.parquet", "--min-hole", "-5"],
        2,
        "min_hole_um2 is -5.0; it is a number from 0 on.",
        "0 keeps everything",
    ),
    "an output made with other settings": (
        ["s.parquet", "-o", "t.parquet", "--min-hole", "400"],
        2,
        "t.parquet was made with cleaning.min_hole_um2=10000.0 (now 400.0).",
        "another -o, or --overwrite to replace it",
    ),
    "an output that is something else": (
        ["s.parquet", "-o", "good.svs"],
        2,
        "good.svs exists and is no pathfm artifact.",
        "another -o, or remove it yourself",
    ),
    "an input that is no slides artifact": (
        ["t.parquet", "-o", "x.parquet"],
        3,
        "t.parquet is of kind tissue; slides is needed here.",
        "`pathfm index` writes slides",
    ),
    "an input that does not exist": (
        ["nowhere.parquet", "-o", "x.parquet"],
        3,
        "nowhere.parquet does not exist.",
        None,
    ),
    "a slide where an index is needed": (
        ["good.svs", "-o", "x.parquet"],
        3,
        "good.svs is neither Parquet nor safetensors, or it is cut short.",
        "pathfm show FILE tells what a file is",
    ),
    "nothing to read": (
        ["-o", "x.parquet"],
        2,
        "mask needs slides: name it, or pipe it in.",
        "pathfm index slides/ -o s.parquet | pathfm mask -o t.parquet",
    ),
    "an unknown option": (
        ["s.parquet", "-o", "x.parquet", "--mag", "40"],
        2,
        "No such option: --mag",
        "pathfm mask --help",
    ),
    "a preview that is a file": (
        ["s.parquet", "-o", "x.parquet", "--preview", "good.svs"],
        2,
        "Invalid value for '--preview'",
        "pathfm mask --help",
    ),
}


def test_outlines_that_people_corrected_take_the_place_of_a_method(
    made: Path, tmp_path: Path
) -> None:
    """What --geojson wrote comes back through --annotations, and the preview is made of it."""
    done = pathfm(
        *("mask", made / "s.parquet", "-o", tmp_path / "c.parquet", "--annotations", "qupath"),
        *("--preview", tmp_path / "p"),
        cwd=made,
    )
    assert done.returncode == 0, done.stderr
    before, after = (
        artifacts.read_table(path, "tissue").frame
        for path in (made / "t.parquet", tmp_path / "c.parquet")
    )
    assert after["tissue_method"].to_list() == [None, "annotations"]
    assert after["tissue_area_mm2"][1] == pytest.approx(before["tissue_area_mm2"][1], rel=1e-4)
    assert before["tissue_method"].to_list() == [None, "unet"] and before["tissue_doubt"][1] > 0
    assert after["tissue_doubt"][1] is None
    assert (tmp_path / "p" / "index.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["s.parquet", "-o", "o.parquet", "--method", "otsu"]],
    ids=["help", "otsu"],
)
def test_no_torch_is_imported_where_no_network_runs(made: Path, arguments: list[str]) -> None:
    code = (
        "import sys\nfrom pathfm_cli.cli import app\n"
        "try:\n    app.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "mask", *arguments], cwd=made, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("arguments", "code", "sentence", "hint"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_sentence_and_a_hint(
    made: Path, arguments: list[str], code: int, sentence: str, hint: str | None
) -> None:
    done = pathfm("mask", *arguments, cwd=made)
    assert done.returncode == code and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"pathfm: {sentence}")
    assert lines[1:] == ([f"hint: {hint}"] if hint else lines[1:])
    assert len(lines) <= 2 and not (made / "x.parquet").exists()


def test_an_empty_pipe_is_exit_3(made: Path) -> None:
    done = pathfm("mask", "-o", "x.parquet", cwd=made, stdin="")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "pathfm: stdin ended without a slides artifact.",
        "hint: did the command on the left fail?",
    ]
