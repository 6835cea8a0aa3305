"""The parts of examples/learning-proof on inputs whose answers are known, and the whole of it."""

import importlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from processes import commands

EXAMPLE = Path(__file__).parents[2] / "examples" / "learning-proof"
DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module


def test_fold_k_scores_the_kth_slide_of_every_organ(module):
    organ4 = module("organ4")
    data = organ4.Organ4(
        images=np.zeros((6, 1, 1, 3), np.uint8),
        organs=np.array(["liver", "liver", "liver", "colon", "colon", "colon"]),
        slides=np.array(["b", "a", "c", "z", "y", "x"]),
        test=np.array([True, False, False, False, False, True]),
    )
    every = np.ones(6, bool)
    folds = [fold.nonzero()[0].tolist() for fold in data.folds(every, 3)]
    assert folds == [[1, 5], [0, 4], [2, 3]]  # a and x, b and y, c and z
    folds = [fold.nonzero()[0].tolist() for fold in data.folds(~data.test, 2)]
    assert folds == [[1, 4], [2, 3]]  # a and y, c and z


def test_texture_is_the_power_of_each_frequency(module):
    texture = module("texture")
    side, cycles = 112, 14  # 1/8 a pixel
    x = np.arange(side)
    density = 0.5 + 0.2 * np.sin(2 * np.pi * cycles * x / side)
    stripes = np.broadcast_to(256 * np.exp(-density) - 1, (side, side))
    image = np.repeat(stripes[..., None], 3, axis=2).round().astype(np.uint8)
    edges = np.geomspace(1 / side, 0.5, 17)
    expected = int(np.searchsorted(edges, cycles / side) - 1)
    found = texture.texture(image[None], contrast=True)
    assert found.shape == (1, 16) and found[0].argmax() == expected
    # Twice the density is four times the power; without contrast the rings have mean 0.
    strong = np.repeat((256 * np.exp(-2 * density) - 1)[None, :, None], 3, axis=2)
    strong = np.broadcast_to(strong, image.shape).round().astype(np.uint8)
    louder = texture.texture(strong[None], contrast=True) - found
    assert louder[0, expected] == pytest.approx(np.log(4), abs=0.05)
    assert texture.texture(image[None], contrast=False).mean() == pytest.approx(0, abs=1e-9)


def test_colour_is_moments_and_quantiles(module):
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0, 0] = 255  # one red pixel of four
    found = module("texture").colour(image)
    assert found.shape == (1, 15)
    assert found[0, :3] == pytest.approx([0.25, 0, 0])
    assert found[0, 3:6] == pytest.approx([0.1875**0.5, 0, 0])
    assert found[0, [6, 9, 12]] == pytest.approx([0, 0, 0.7])  # 10, 50, 90 % of 0 0 0 1


def a_tenth(folder):
    """DATA with every tenth patch of organ4, some of each slide, and every fifth nuclei image."""
    (folder / "slides").symlink_to(DATA / "slides")
    for name, table, step in (("organ4", "labels.csv", 10), ("dsb2018", "index.csv", 5)):
        source, target = DATA / "patches" / name, folder / "patches" / name
        target.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.is_dir():
                (target / entry.name).symlink_to(entry)
        head, *rows = (source / table).read_text().splitlines(keepends=True)
        (target / table).write_text("".join([head, *rows[::step]]))
    return folder


@pytest.mark.slow(30)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the slides of ../shared/data")
def test_the_whole_example_runs_and_goes_on(tmp_path):
    recipe = (EXAMPLE / "recipe.toml").read_text()
    short = recipe.replace("steps = 600", "steps = 4").replace(
        "export_every = 100", "export_every = 2"
    )
    short = short.replace("warmup_epochs = 1.0", "warmup_epochs = 0.0")
    short = short.replace("batch_size = 32", "batch_size = 8")
    short = short.replace("probe_patches = 256", "probe_patches = 32")
    copy = tmp_path / "example"
    copy.mkdir()
    for file in EXAMPLE.iterdir():
        if file.suffix in (".py", ".sh"):
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "recipe.toml").write_text(short)
    (tmp_path / "data").mkdir()
    data = a_tenth(tmp_path / "data")
    command = ["bash", str(copy / "run.sh"), str(data), str(tmp_path / "out"), "0", "1"]
    for _ in range(2):
        done = subprocess.run(command, env=commands(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["runs"]) == ["seed-0", "seed-1"]
    assert [point["step"] for point in results["runs"]["seed-0"]["curve"]] == [0, 2, 4]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
