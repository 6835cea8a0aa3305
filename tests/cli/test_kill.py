"""SIGKILL at random moments: no broken artifact is ever visible, and a rerun completes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from safetensors import safe_open

from pathfm_cli import artifacts

DEMO_SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
KILLS = 10
SHORT = "--set train.steps=8 --set optim.warmup_epochs=0 --set train.checkpoint_every=1".split()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pathfm_cli", *arguments]


def run(folder: Path, *arguments: str) -> float:
    start = time.monotonic()
    done = subprocess.run(
        command(*arguments), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


def killed_after(folder: Path, seconds: float, *arguments: str) -> None:
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def readable(path: Path) -> None:
    """Whatever is visible under the final name must be whole."""
    target = artifacts.resolve(path)
    if not target.exists():
        return
    header = artifacts.read_header(target)
    if target.suffix == ".safetensors":
        with safe_open(target, "numpy") as tensors:
            assert all(tensors.get_tensor(name).size for name in tensors.keys())
    else:
        table = artifacts.read_table(target)
        assert len(table.frame) == header.rows
        if "tiles" in header.files:
            table.file("tiles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    run(folder, "index", str(DEMO_SLIDE), "-o", "s.parquet")
    run(folder, "mask", "s.parquet", "-o", "t.parquet")
    run(folder, "sample", "t.parquet", "--grid", "--mpp", "0.5", "--size", "64", "-o", "p.parquet")
    run(folder, "embed", "p.parquet", "--model", "random/vit_tiny_patch16_224", "-o", "e.parquet")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "arguments"),
    [
        ("s", ["index", str(DEMO_SLIDE), "-o", "{out}"]),
        ("t", ["mask", "s.parquet", "-o", "{out}"]),
        ("p", ["sample", "t.parquet", "--n", "200", "--mpp", "0.5,1", "-o", "{out}"]),
        ("e", ["embed", "p.parquet", "--model", "random/vit_tiny_patch16_224", "-o", "{out}"]),
        ("o", ["odcorr", "e.parquet", "-o", "{out}"]),
        ("r", ["pretrain", "t.parquet", "--recipe", "tiny", *SHORT, "-o", "{out}"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ten_kills_then_a_rerun_equals_the_undisturbed_run(
    folder: Path, out: str, arguments: list[str]
) -> None:
    suffix = "" if out == "r" else ".parquet"
    undisturbed, disturbed = f"{out}-undisturbed{suffix}", f"{out}-killed{suffix}"
    seconds = run(folder, *(a.format(out=undisturbed) for a in arguments))
    again = [a.format(out=disturbed) for a in arguments]
    moments = random.Random(out)
    for _ in range(KILLS):
        killed_after(folder, moments.uniform(0.1, 1.0) * seconds, *again)
        readable(folder / disturbed)
    run(folder, *again)
    left, right = (artifacts.resolve(folder / name) for name in (undisturbed, disturbed))
    if suffix:
        assert pl.read_parquet(left).equals(pl.read_parquet(right))
    else:
        assert left.read_bytes() == right.read_bytes()
    leftovers = {p.name for p in folder.iterdir() if ".tmp-" in p.name or ".parts-" in p.name}
    assert leftovers == set()
