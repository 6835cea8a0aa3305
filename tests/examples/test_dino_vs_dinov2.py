"""The pair of recipes is a fair one, and the plot shows both methods."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pathfm_cli.pretrain import recipe

FOLDER = Path(__file__).parents[2] / "examples" / "dino-vs-dinov2"


def test_only_the_method_and_what_comes_with_it_differ():
    one, two = (recipe.load(str(FOLDER / f"{name}.toml")) for name in ("dino", "dinov2"))
    assert (one.method, two.method) == ("dino", "dinov2")
    same = {"data", "augment", "ema", "train"}
    assert all(getattr(one, name) == getattr(two, name) for name in same)
    assert one.peak_lr == two.peak_lr
    assert dataclasses.replace(two.head, norm_last_layer=True) == one.head
    plain = dataclasses.replace(two.model, init_values=None, drop_path="linear")
    assert plain == one.model
    # Paper, Table VII: "iBOT separate head: False"; Appendix B: Sinkhorn-Knopp, KoLeo.
    assert two.ibot_head is None and two.loss.centring == "sinkhorn" and two.loss.koleo == 0.1


def test_the_plot_has_both_methods(tmp_path):
    pytest.importorskip("matplotlib")
    steps = (0, 10)
    run = {
        "odcorr": [{"step": step, "odcorr": 0.5} for step in steps],
        "probes": [{"step": step, "organs": 0.25, "nuclei": 0.5} for step in steps],
    }
    file = tmp_path / "curves.json"
    file.write_text(json.dumps({"dino": run, "dinov2-lr-1": run, "dinov2-lr-2": run}))
    target = tmp_path / "curves.png"
    subprocess.run([sys.executable, FOLDER / "plot.py", file, target], check=True)
    colours = {colour for _, colour in Image.open(target).convert("RGB").getcolors(1 << 24)}
    blue, orange = (31, 119, 180), (255, 127, 14)
    assert {blue, orange} <= colours
