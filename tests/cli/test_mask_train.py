"""`pathfm mask-train` as a process."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import pathfm

from pathfm_cli import artifacts
from pathfm_cli.model import unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, half of it stained, and its mask."""
    made = tmp_path_factory.mktemp("train")
    mask = np.zeros((120, 120), np.uint8)
    mask[:, :60] = 255
    rgb = np.where(mask[..., None] > 0, (180, 90, 150), (243, 243, 243)).astype(np.uint8)
    for name, pixels in (("thumbs", rgb), ("masks", mask)):
        (made / name).mkdir()
        Image.fromarray(pixels).save(made / name / "one.png")
    Image.fromarray(rgb).save(made / "thumbs" / "two.png")
    (made / "empty").mkdir()
    (made / "broken").mkdir()
    (made / "broken" / "one.png").write_text("none")
    return made


PICTURES = ("--images", "thumbs", "--image-mpp", "8", "--annotations", "masks")


def test_it_trains_from_pictures_and_mask_takes_the_result(folder: Path) -> None:
    done = pathfm(
        *("mask-train", *PICTURES, "--steps", "1", "--precision", "fp32", "--mpp", "12"),
        *("--device", "cpu", "-o", "u.safetensors"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["kind"] == "segmenter" and set(record["metrics"]) == {"loss", "fresh_dice"}
    network = unet.load(folder / "u.safetensors", "cpu")
    assert network.id == record["id"] and network.mpp == 12.0
    header = artifacts.read_header(folder / "u.safetensors", "segmenter")
    assert header.settings["pairs"] == ["one"] and header.settings["steps"] == 1
    assert done.stderr == "pathfm: 1 of 2 have no annotation or an error\n"
    again = pathfm(
        *("mask-train", *PICTURES, "--steps", "1", "--precision", "fp32", "--mpp", "12"),
        *("--device", "cpu", "-o", "u.safetensors"),
        cwd=folder,
    )
    assert again.returncode == 0 and json.loads(again.stdout) == record
    assert again.stderr.endswith("pathfm: u.safetensors is up to date\n")


WRONG = {
    "annotations of nothing": (
        ["--images", "thumbs", "--image-mpp", "8", "--annotations", "empty"],
        3,
        "There is no annotated tissue to learn from.",
    ),
    "a mask that is none": (
        ["--images", "thumbs", "--image-mpp", "8", "--annotations", "broken"],
        3,
        "broken/one.png is no readable picture.",
    ),
    "an output that is something else": (
        [*PICTURES, "-o", "masks/one.png"],
        2,
        "masks/one.png exists and is no pathfm artifact.",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_sentence_and_a_hint(
    folder: Path, arguments: list[str], code: int, sentence: str
) -> None:
    out = [] if "-o" in arguments else ["-o", "x.safetensors"]
    done = pathfm("mask-train", *arguments, *out, cwd=folder)
    assert done.returncode == code and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == f"pathfm: {sentence}" and lines[1].startswith("hint: ")
    assert len(lines) == 2 and not (folder / "x.safetensors").exists()
