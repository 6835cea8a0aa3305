"""Two nodes that are really apart: two network namespaces, and a cable that is cut mid-run.

Needs root and Linux's `ip`; elsewhere these tests are skipped.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import ADDRESSES, cable, connected, ended, on
from processes import pathfm as forked

from pathfm_cli import cluster

pytestmark = pytest.mark.slow(60)

PATIENCE_S = 15
"""How long a rank waits for the other one here; half an hour unless it is set."""
STATED_S = 60
"""Within so long after the cut every process has ended: patience, and torchrun's own shutdown."""
DEMO = Path(cluster.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"
STEPS = 60
SETTINGS = {
    **{"train.steps": STEPS, "train.batch_size": 4, "train.checkpoint_every": 5},
    **{"train.probe_patches": 8, "train.watch_every": 0, "data.size_px": 64},
    **{"crops.global_size_px": 48, "crops.local_size_px": 32, "crops.local_count": 2},
    **{"model.embed_dim": 64, "model.depth": 2},
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    with connected():
        yield


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    for words in (
        ["index", DEMO, "-o", folder / "s.parquet"],
        ["mask", folder / "s.parquet", "--method", "otsu", "-o", folder / "t.parquet"],
    ):
        assert forked(*words).returncode == 0
    return folder / "t.parquet"


def start(tissue: Path, run: Path, port: int) -> list[subprocess.Popen[str]]:
    """The same command on both nodes; node 1 has looked at the folder before node 0 makes it."""
    settings = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    meet = ["--nnodes", "2", "--rdzv-endpoint", f"{ADDRESSES[0]}:{port}"]
    verb = ["-m", "pathfm_cli", "pretrain", tissue, "--recipe", "tiny", "-o", run, "--gpus", "1"]
    patience = {"PATHFM_PEER_TIMEOUT_S": str(PATIENCE_S)}
    second = on(1, *verb, *meet, "--node-rank", "1", *settings, **patience)
    time.sleep(10)
    return [on(0, *verb, *meet, "--node-rank", "0", *settings, **patience), second]


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.05)
    pytest.fail(f"step {step} was not reached")


def test_a_cut_cable_ends_the_run_and_it_goes_on(
    nodes: None, tissue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = ended(start(tissue, whole, 29511), 120)
    assert [code for code, _ in first] == [0, 0], first
    running = start(tissue, cut, 29512)
    wait_for_step(cut, 12)
    cable("down")
    began = time.monotonic()
    told = ended(running, STATED_S)
    seconds = time.monotonic() - began
    cable("up")
    for code, said in told:
        assert code in (1, 75), said
        assert "run the same command" in said, said
    begun = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert 12 <= begun[-1] < STEPS
    again = ended(start(tissue, cut, 29513), 120)
    assert [code for code, _ in again] == [0, 0], again
    resumed = re.search(rf"steps (\d+) to {STEPS}", again[0][1])
    assert resumed and 10 <= int(resumed[1]) <= begun[-1], again
    result = "teacher.safetensors"
    assert (cut / result).read_bytes() == (whole / result).read_bytes()
    with capsys.disabled():
        codes = [code for code, _ in told]
        sys.stdout.write(
            f"\ntwo nodes, cable cut after step {begun[-1]}: exit {codes} after {seconds:.1f} s "
            f"(patience {PATIENCE_S} s); went on from {resumed[1]} to {STEPS}, weights equal\n"
        )
