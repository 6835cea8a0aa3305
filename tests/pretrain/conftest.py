"""A real tissue artifact, and a recipe small enough for many runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from pathfm_cli.pretrain import recipe

SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"
MICRO = (
    "train.steps=12",
    "train.steps_per_epoch=3",
    "train.batch_size=4",
    "train.checkpoint_every=4",
    "train.probe_patches=6",
    "train.watch_every=0",
    "data.size_px=48",
    "crops.global_size_px=32",
    "crops.local_size_px=16",
    "crops.local_count=2",
    "model.patch_size=8",
    "model.embed_dim=24",
    "model.depth=2",
    "model.drop_path_rate=0.3",
    "head.hidden=32",
    "head.bottleneck=16",
    "head.prototypes=64",
    "loss.freeze_last_layer_epochs=2",
    "loss.teacher_temperature_start=0.03",
    "loss.teacher_temperature_epochs=3",
)


@pytest.fixture(scope="session")
def tissue(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tissue")
    pathfm = [sys.executable, "-m", "pathfm_cli"]
    slides = str(folder / "s.parquet")
    subprocess.run([*pathfm, "index", str(SLIDE), "-o", slides], check=True, capture_output=True)
    tissue = folder / "t.parquet"
    subprocess.run([*pathfm, "mask", slides, "-o", str(tissue)], check=True, capture_output=True)
    return tissue


@pytest.fixture(scope="session")
def micro():
    """A function from `a.b=value` changes to the recipe."""
    return lambda *changes: recipe.load("tiny", [*MICRO, *changes])


MICRO2 = (
    *(change for change in MICRO if "teacher_temperature" not in change),
    "model.reg_tokens=1",
    "ibot_head.layers=2",
    "ibot_head.hidden=16",
    "ibot_head.bottleneck=8",
    "ibot_head.prototypes=48",
    "ibot_head.norm_last_layer=false",
    "train.shard_above=0",
)


@pytest.fixture(scope="session")
def micro2():
    """The same for DINOv2; ranks share their student."""
    return lambda *changes: recipe.load("tiny-dinov2", [*MICRO2, *changes])
