"""examples/segment-nuclei: its table, and what it claims, at small scale."""

import importlib
import json
from pathlib import Path

import pytest
from processes import pathfm

EXAMPLE = Path(__file__).parents[2] / "examples" / "segment-nuclei"
NUCLEI = Path(__file__).parents[2].parent / "shared" / "data" / "patches" / "dsb2018"


def test_a_line_of_the_table(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    table = importlib.import_module("table")
    headline = "dice_micro_foreground"
    metrics = {headline: 0.7, f"{headline}_std": 0.0123, "foreground_share": 0.25}
    metrics |= {f"{headline}_low": 0.6, f"{headline}_high": 0.8, f"{headline}:windows": 0.71}
    metrics |= {"dice_mean_of_images": 0.65, "iou_macro": 0.5}
    one = {"metrics": metrics, "runs": [0.69, 0.71], "converged": [True, False, True]}
    lines = table._table({"trained, linear": one}).splitlines()
    assert lines[2] == (
        "| trained, linear | 0.690 0.710 | **0.700** ± 0.012 | 0.600 to 0.800 | 0.710 | 0.650 "
        "| 0.500 | 2 of 3 |"
    )
    # Calling everything foreground scores 2 s / (1 + s), s the share of foreground.
    assert lines[4] == "All background: 0. All foreground: 0.400."


@pytest.mark.slow(40)
@pytest.mark.skipif(not NUCLEI.exists(), reason="needs the nuclei images of ../shared/data")
def test_smaller_patches_segment_nuclei_better(tmp_path):
    found = {}
    for arch in ("vit_small_patch16_224", "vit_small_patch8_224"):
        done = pathfm(
            *("segment", "--images", NUCLEI / "index.csv", "--instances", "--size", "112"),
            *("--stride", "112", "--crops", "24", "--epochs", "60", "--lr", "3e-3"),
            *("--model", f"random/{arch}", "-o", arch),
            cwd=tmp_path,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        found[arch] = json.loads(done.stdout)["metrics"]
        assert (found[arch]["n_train"], found[arch]["n_test"]) == (36, 19)
        assert found[arch]["converged"] == 1
    large, small = (one["dice_micro_foreground"] for one in found.values())
    share = found[arch]["foreground_share"]
    assert small > large + 0.03 > 2 * share / (1 + share) + 0.15
