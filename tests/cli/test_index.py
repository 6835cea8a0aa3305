"""`pathfm index` as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from processes import pathfm
from ramps import MakePyramid

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
        return pathfm("index", *arguments, cwd=tmp_path, **options)

    return run


@pytest.fixture
def slides(make_pyramid: MakePyramid, tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    make_pyramid("a.tif").rename(folder / "a.tif")
    make_pyramid("b.tif", size=(512, 256)).rename(folder / "b.tif")
    return folder


def test_a_folder(run: Run, slides: Path, tmp_path: Path) -> None:
    done = run("slides", "-o", "s.parquet")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record.pop("id")
    assert record == {
        "schema": "pathfm.artifact/1",
        "kind": "slides",
        "path": str(tmp_path / "s.parquet"),
        "rows": 2,
        "failed": 0,
    }
    assert pl.read_parquet(tmp_path / "s.parquet")["slide"].to_list() == ["a", "b"]
    assert len(list(tmp_path.glob("s.tiles-*.safetensors"))) == 1


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_a_list_on_stdin(run: Run, slides: Path, tmp_path: Path, dash: tuple[str, ...]) -> None:
    done = run(*dash, "-o", "s.parquet", "-q", stdin="slides/b.tif\n\nslides/a.tif\n")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 's.parquet'}\n")
    assert pl.read_parquet(tmp_path / "s.parquet").height == 2


def test_the_real_slides_with_their_table(run: Run, slides_folder: Path, tmp_path: Path) -> None:
    arguments = (slides_folder, "--metadata", slides_folder / "slides.csv", "-o", "s.parquet")
    done = run(*arguments)
    assert done.returncode == 4
    assert json.loads(done.stdout)["failed"] == 2
    assert done.stderr.splitlines() == [
        "pathfm: 2 of 12 slides failed:",
        "  TCGA-CR-7395-01A-01-TS1: no trustworthy mpp (the file states none)",
        "  lipoma_colon_HE_nompp: no trustworthy mpp (the file states none)",
        "hint: --mpp-override TCGA-CR-7395-01A-01-TS1=0.25 names its mpp",
    ]
    overrides = ("--mpp-override", "1.0112", "--mpp-override", "TCGA-CR-7395-01A-01-TS1=0.5")
    assert run(*arguments, *overrides, "--overwrite").returncode == 0
    frame = pl.read_parquet(tmp_path / "s.parquet")
    found = dict(frame.filter(pl.col("mpp_source") == "override").select("slide", "mpp").rows())
    assert found == {"TCGA-CR-7395-01A-01-TS1": 0.5, "lipoma_colon_HE_nompp": 1.0112}


def test_again_is_up_to_date(run: Run, slides: Path, tmp_path: Path) -> None:
    first = run("slides", "-o", "s.parquet")
    before = (tmp_path / "s.parquet").stat().st_mtime_ns
    again = run("slides", "-o", "s.parquet")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert again.stderr == "pathfm: s.parquet is up to date\n"
    assert (tmp_path / "s.parquet").stat().st_mtime_ns == before


def test_dry_run_touches_nothing(run: Run, slides: Path, tmp_path: Path) -> None:
    done = run("slides", "-o", "out/s.parquet", "-n")
    plan = json.loads(done.stdout)
    assert (done.returncode, plan["schema"], plan["slides"]) == (0, "pathfm.plan/1", 2)
    assert plan["bytes"] == sum(path.stat().st_size for path in slides.iterdir())
    assert plan["writes"][0] == "out/s.parquet"
    assert os.listdir(tmp_path) == ["slides"]


def test_max_failed(run: Run, slides: Path, tmp_path: Path) -> None:
    (slides / "c.svs").write_bytes(b"bad")
    done = run("slides", "-o", "s.parquet", "--max-failed", "0")
    assert (done.returncode, done.stdout) == (1, "")
    first, hint = done.stderr.splitlines()
    assert first.startswith(
        "pathfm: 1 of the slides so far failed, --max-failed is 0; the last is c"
    )
    assert hint.startswith("hint: ")
    assert os.listdir(tmp_path) == ["slides"]


WRONG = {
    "nothing named": ((), 2, "index needs slides"),
    "an absent slide": (("absent.svs",), 3, "absent.svs does not exist."),
    "an empty folder": (("empty",), 3, "empty holds no slide."),
    "a remote folder": (("https://host/slides/",), 2, "a web server cannot be listed"),
    "no manifest": (("--gdc-manifest", "keyless.csv"), 3, "is no GDC manifest: it has no column"),
    "no mpp": (("slides", "--mpp-override", "40x"), 2, "'40x' is no mpp between 0.05 and 20."),
    "an unknown slide": (("slides", "--mpp-override", "q=1"), 2, "there is no slide q."),
    "no metadata": (("slides", "--metadata", "m.csv"), 3, "m.csv does not exist."),
    "a clash": (("slides", "--metadata", "clash.csv"), 2, "has a column mpp, which the index"),
    "no key": (("slides", "--metadata", "keyless.csv"), 2, "has no column `slide`"),
    "no paths": (("keyless.csv",), 2, "has no column `path` or `uri`."),
    "one id twice": (("slides", "slides/sub/a.svs"), 2, "Two slides have the id a:"),
    "a flag": (("slides", "--mpp", "1"), 2, "No such option"),
    "a number": (("slides", "--workers", "-1"), 2, "Invalid value for '--workers'"),
    "no root": (("slides", "--root", "absent"), 2, "--root absent is no folder."),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(run: Run, slides: Path, tmp_path: Path, case: str) -> None:
    arguments, code, sentence = WRONG[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "clash.csv").write_text("slide,mpp\na,1\n")
    (tmp_path / "keyless.csv").write_text("age\n1\n")
    if case == "one id twice":
        (slides / "sub").mkdir()
        (slides / "sub" / "a.svs").write_bytes((slides / "a.tif").read_bytes())
    done = run(*arguments, "-o", "s.parquet")
    assert (done.returncode, done.stdout) == (code, "")
    first, hint = done.stderr.splitlines()
    assert first.startswith("pathfm: ")
    assert sentence in first
    assert hint.startswith("hint: ")
    assert not (tmp_path / "s.parquet").exists()


def test_an_occupied_output_fails_before_stdin_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_text("mine")
    reader, writer = os.pipe()
    try:
        done = run("-", "-o", "s.parquet", stdin=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "pathfm: s.parquet exists and is no pathfm artifact.",
        "hint: another -o, or remove it yourself",
    ]
    assert (tmp_path / "s.parquet").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("", 3, "stdin ended without slides"),
        ('{"schema":"pathfm.artifact/1","kind":"scores","path":"x"}\n', 3, "stdin named no slide"),
        ("absent.svs\n", 3, "absent.svs does not exist"),
    ],
)
def test_a_pipe_without_slides(run: Run, text: str, code: int, sentence: str) -> None:
    done = run("-o", "s.parquet", stdin=text)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "hint: " in done.stderr


def test_other_settings_name_what_differs(run: Run, slides: Path) -> None:
    run("slides", "-o", "s.parquet")
    done = run("slides", "-o", "s.parquet", "--mpp-override", "a=0.3")
    assert done.returncode == 2
    assert "mpp_override.a" in done.stderr


def test_help_is_quick_to_load(run: Run) -> None:
    code = (
        "import sys; from pathfm_cli.cli import app; app.run(['index', '--help']);"
        "assert not {'torch', 'numpy', 'polars'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pathfm index slides/ -o s.parquet" in done.stdout
