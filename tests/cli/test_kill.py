"""SIGKILL at random moments: no broken artifact is ever visible, and a rerun completes."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest
from processes import pathfm
from safetensors import safe_open

from pathfm_cli import artifacts

DEMO_SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
KILLS = 10
LIVES = 40
EMBED = ["embed", "p.parquet", "--model", "random/test_vit", "--batch-size", "8"]
SMALL = {
    "train.steps": 12, "train.batch_size": 4, "train.checkpoint_every": 1, "train.probe_patches": 6,
    "optim.warmup_epochs": 0, "data.size_px": 64, "crops.global_size_px": 48,
    "crops.local_size_px": 32, "crops.local_count": 2, "model.patch_size": 8,
    "model.embed_dim": 24, "model.depth": 2, "model.drop_path_rate": 0.0,
    "head.hidden": 32, "head.bottleneck": 16, "head.prototypes": 64,
}  # fmt: skip
PRETRAIN = ["pretrain", "t.parquet", "--recipe", "tiny"]
PRETRAIN += [f"--set={key}={value}" for key, value in SMALL.items()]


def run(folder: Path, *arguments: str, timeout: float = 240) -> float:
    start = time.monotonic()
    done = pathfm(*arguments, cwd=folder, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


def killed(folder: Path, seconds: float, *arguments: str) -> bool:
    """Whether SIGKILL, after so many seconds, met the verb at work."""
    try:
        run(folder, *arguments, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def forget(path: Path) -> None:
    """Remove a result, so that the next life has its work to do again."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


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
    run(folder, "sample", "t.parquet", "--grid", "--mpp", "2", "--size", "64", "-o", "p.parquet")
    run(folder, *EMBED, "-o", "e.parquet")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "arguments"),
    [
        ("s", ["index", str(DEMO_SLIDE), "-o", "{out}"]),
        ("t", ["mask", "s.parquet", "-o", "{out}"]),
        ("p", ["sample", "t.parquet", "--n", "200", "--mpp", "0.5,1", "-o", "{out}"]),
        ("e", [*EMBED, "-o", "{out}"]),
        ("o", ["odcorr", "e.parquet", "-o", "{out}"]),
        ("r", [*PRETRAIN, "-o", "{out}"]),
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
    kills = lives = 0
    while kills < KILLS and lives < LIVES:
        lives += 1
        if killed(folder, moments.uniform(0.1, 1.0) * seconds, *again):
            kills += 1
            readable(folder / disturbed)
        else:
            readable(folder / disturbed)
            forget(folder / disturbed)
    assert kills == KILLS
    run(folder, *again)
    left, right = (artifacts.resolve(folder / name) for name in (undisturbed, disturbed))
    if suffix:
        assert pl.read_parquet(left).equals(pl.read_parquet(right))
    else:
        assert left.read_bytes() == right.read_bytes()
    leftovers = {p.name for p in folder.iterdir() if ".tmp-" in p.name or ".parts-" in p.name}
    assert leftovers == set()
