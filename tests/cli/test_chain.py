"""The chain as a user types it: real shells, real slides; one slide in fresh interpreters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import commands

from pathfm_cli import artifacts

ROOT = Path(__file__).parents[2]
DEMO_SLIDE = ROOT / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
SHARED = ROOT.parent / "shared" / "data"
FRESH = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(
    command: str, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment or commands(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_one_slide_from_index_to_odcorr(tmp_path: Path) -> None:
    trained = shell(
        f"set -o pipefail; pathfm index {DEMO_SLIDE} -o s.parquet | pathfm mask -o t.parquet"
        " | pathfm pretrain --recipe tiny -o run/ --set train.steps=3 --set train.batch_size=8"
        " --set optim.warmup_epochs=0",
        tmp_path,
        FRESH,
    )
    assert trained.returncode == 0, trained.stderr
    record = json.loads(trained.stdout)
    assert record["kind"] == "checkpoint"
    assert record["path"] == str(tmp_path / "run" / "teacher.safetensors")
    scored = shell(
        "set -o pipefail; pathfm sample t.parquet --grid --mpp 1 --size 128 -o p.parquet"
        " | pathfm embed --model run/ -o e.parquet | pathfm odcorr --json",
        tmp_path,
    )
    assert scored.returncode == 0, scored.stderr
    metrics = json.loads(scored.stdout)["metrics"]
    assert metrics["n"] == artifacts.read_header(tmp_path / "e.parquet").rows > 20
    assert metrics["floor"] < metrics["odcorr"] <= 1
    gate = shell("pathfm odcorr e.parquet --max 0.01 --json", tmp_path)
    assert gate.returncode == 5
    assert json.loads(gate.stdout)["metrics"]["odcorr"] == metrics["odcorr"]
    again = shell("pathfm mask s.parquet -o t.parquet", tmp_path)
    assert again.returncode == 0 and "up to date" in again.stderr


@pytest.mark.slow
def test_the_example_script_runs_and_runs_again(tmp_path: Path) -> None:
    script = ROOT / "examples" / "chain.sh"
    short = "--set train.steps=3 --set train.batch_size=8 --set optim.warmup_epochs=0"
    for _ in range(2):
        done = shell(f"bash {script} {DEMO_SLIDE} out tiny {short}", tmp_path)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        *("slides.parquet", "tissue.parquet", "patches.parquet", "embeddings.parquet"),
        *("odcorr.parquet", "odcorr.json", "outlines", "pca.png", "run"),
    }


@pytest.mark.slow(30)
@pytest.mark.skipif(not SHARED.exists(), reason="needs the slides of ../shared/data")
def test_the_issue_line_on_every_slide(tmp_path: Path) -> None:
    trained = shell(
        f"pathfm index {SHARED}/slides/*.svs {SHARED}/slides/*.tif -o s.parquet"
        " | pathfm mask -o t.parquet"
        " | pathfm pretrain --recipe tiny -o run/ --set train.steps=50 --set train.batch_size=8",
        tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    slides = artifacts.read_table(tmp_path / "s.parquet", "slides").frame
    failed = dict(slides.filter(slides["error"].is_not_null()).select("slide", "error").iter_rows())
    assert set(failed) == {"lipoma_colon_HE_nompp", "TCGA-CR-7395-01A-01-TS1"}
    assert all("mpp" in error for error in failed.values())
    assert len(slides) == 12
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 50
    scored = shell(
        "pathfm sample t.parquet --grid --mpp 1 -o p.parquet"
        " | pathfm embed --model run/ -o e.parquet | pathfm odcorr --json",
        tmp_path,
    )
    assert scored.returncode == 0, scored.stderr
    metrics = json.loads(scored.stdout)["metrics"]
    assert metrics["n"] > 1000 and 0 < metrics["odcorr"] < 1
