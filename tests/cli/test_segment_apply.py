"""`segment --apply`: real processes, from label maps to polygons on the demo slide."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import pathfm

import pathfm_cli
from pathfm_cli import artifacts
from pathfm_cli.data import finders, index, mask

DEMO = Path(pathfm_cli.__file__).parent / "demo_data" / "CMU-1-Small-Region.svs"
MODEL = ("--model", "random/vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tissue of the demo slide, and a decoder that finds what is dark."""
    folder = tmp_path_factory.mktemp("apply")
    index.index([str(DEMO)], folder / "slides.parquet")
    mask.mask(folder / "slides.parquet", folder / "tissue.parquet", finders.Otsu())
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        label = np.zeros((64, 64), np.uint8)
        label[:, :32] = 1
        image = np.where(label[..., None] > 0, 90, 220) + rng.integers(0, 9, (64, 64, 3))
        for part, pixels in (("images", image.astype(np.uint8)), ("labels", label)):
            place = folder / "images" / split / part
            place.mkdir(parents=True)
            Image.fromarray(pixels).save(place / "a.png")
    done = pathfm(
        *("segment", "--images", "images", "--classes", "background,dark", *MODEL, "--size", "64"),
        *("--stride", "48", "--crops", "4", "-o", "trained", "-q"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_polygons_and_files_for_qupath(folder: Path) -> None:
    arguments = ("segment", "tissue.parquet", "--apply", "trained", *MODEL, "--mpp", "4")
    plan = json.loads(pathfm(*arguments, "-o", "dark.parquet", "-n", cwd=folder).stdout)
    done = pathfm(*arguments, "-o", "dark.parquet", "--geojson", "qupath", cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["kind"] == "regions" and record["path"] == str(folder / "dark.parquet")
    settings = artifacts.read_header(folder / "dark.parquet").settings
    assert settings["grid"]["mpp"] == [4.0] and settings["grid"]["stride_px"] == 48
    assert settings["classes"] == ["background", "dark"] and plan["patches"] > 1
    features = json.loads(next((folder / "qupath").iterdir()).read_text())["features"]
    assert len(features) == record["rows"] > 0
    again = pathfm(*arguments, "-o", "dark.parquet", "-q", cwd=folder)
    assert again.returncode == 0 and again.stdout == record["path"] + "\n"


def test_a_file_of_another_is_seen_before_slides_are(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "CMU-1-Small-Region.geojson").write_text("{}")
    done = pathfm(
        *("segment", "tissue.parquet", "--apply", "trained", *MODEL, "--mpp", "4"),
        *("-o", "unseen.parquet", "--geojson", "mine"),
        cwd=folder,
    )
    assert done.returncode == 2 and "CMU-1-Small-Region.geojson was edited" in done.stderr
    assert not (folder / "unseen.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("tissue.parquet", *MODEL), 2, "is tissue; a grid over it needs --mpp"),
        (("tissue.parquet", "--mpp", "4"), 2, "needs a model"),
        (("tissue.parquet", *MODEL, "--mpp", "4", "--seed", "1"), 2, "another encoder"),
        (("tissue.parquet", *MODEL, "--size", "64"), 2, "--size does not go with --apply"),
        (("slides.parquet", *MODEL, "--mpp", "4"), 3, "is of kind slides"),
        (("tissue.parquet", *MODEL, "--mpp", "4", "-o", "trained"), 2, "trained is a folder"),
    ],
)
def test_wrong_requests(folder: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    chosen = arguments if "-o" in arguments else (*arguments, "-o", "wrong.parquet")
    done = pathfm("segment", *chosen, "--apply", "trained", cwd=folder)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("pathfm: random/")]
    assert lines[-2].startswith("pathfm: ") and message in lines[-2]
    assert lines[-1].startswith("hint: ") and done.stdout == ""
    assert not (folder / "wrong.parquet").exists()
