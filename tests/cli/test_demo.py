"""`pathfm demo` as a newcomer runs it; what comes after the first time is forked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import pathfm

from pathfm_cli import artifacts


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pathfm_cli", "demo", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_plan_lists_pasteable_commands(tmp_path: Path) -> None:
    done = pathfm("demo", "-n", "--json", cwd=tmp_path)
    plan = json.loads(done.stdout)
    verbs = [text.split()[1] for key, text in plan.items() if key != "schema"]
    assert verbs[:6] == ["index", "mask", "pretrain", "sample", "embed", "odcorr"]
    assert list(tmp_path.iterdir()) == []


def test_a_failing_step_ends_it_with_that_steps_code(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "slides.parquet").write_text("precious")
    done = pathfm("demo", cwd=tmp_path)
    assert done.returncode == 2 and "is no pathfm artifact" in done.stderr
    assert (tmp_path / "demo" / "slides.parquet").read_text() == "precious"


def test_a_file_in_its_place_is_told_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text("precious")
    done = pathfm("demo", "-o", "x.html", cwd=tmp_path)
    told = "pathfm: x.html/slides.parquet cannot be written: "
    assert done.returncode == 2 and done.stderr.startswith(told)
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.slow(35)
def test_the_demo_leaves_artifacts_and_pictures_and_runs_again(tmp_path: Path) -> None:
    done = run(tmp_path, "--steps", "12")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "checkpoint"
    kinds = {
        artifacts.read_header(tmp_path / "demo" / name).kind
        for name in ("slides.parquet", "tissue.parquet", "patches.parquet", "run")
    }
    assert kinds == {"slides", "tissue", "patches", "checkpoint"}
    pictures = sorted((tmp_path / "demo" / "pictures").glob("*.png"))
    assert {p.name for p in pictures} >= {"patches.png", "pca.png", "loss.png"}
    assert len(pictures) == 4
    for path in pictures:
        colours = Image.open(path).convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 50, f"{path.name} is empty"
    again = pathfm("demo", "--steps", "12", cwd=tmp_path)
    assert again.returncode == 0 and again.stderr.count("up to date") >= 5
