"""An export is two files that plain timm loads, and says what it is."""

import json
import subprocess
import sys

import pytest
import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import export, vit

KWARGS = {
    "img_size": 32,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 8,
    "dynamic_img_size": True,
}
INFO = export.Info(
    arch="vit_tiny_patch16_224",
    kwargs=KWARGS,
    image_size_px=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    recipe="tiny",
    step=7,
)
HEADER = artifacts.Header(kind="checkpoint", parents=("tissue:1",), settings={"a": 1})

PLAIN_TIMM = """
import json, sys, torch
try:
    import torchvision
except RuntimeError:  # a torchvision that does not fit this torch
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
        del sys.modules[name]
    from pathfm_cli.model import shim
    shim.apply()
import timm
from safetensors.torch import load_file
info = json.load(open(sys.argv[1] + "/model.json"))
model = timm.create_model(info["arch"], num_classes=0, **info["kwargs"]).eval()
print(model.load_state_dict(load_file(sys.argv[1] + "/teacher.safetensors"), strict=True))
torch.save(model(torch.load(sys.argv[1] + "/images.pt")), sys.argv[1] + "/features.pt")
"""


@pytest.fixture
def module():
    torch.manual_seed(0)
    return vit.build(INFO.arch, **KWARGS).eval()


def test_plain_timm_loads_it_strictly_and_computes_the_same(module, tmp_path):
    export.export(tmp_path, module, INFO, HEADER)
    images = torch.randn(2, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-c", PLAIN_TIMM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "All keys matched" in done.stdout, done.stderr
    features = torch.load(tmp_path / "features.pt", weights_only=True)
    torch.testing.assert_close(features, module(images))


def test_the_record_and_header_say_what_it_is(module, tmp_path):
    record = export.export(tmp_path, module, INFO, HEADER)
    assert record["kind"] == "checkpoint" and record["id"] == HEADER.id
    assert record["path"] == str(tmp_path / "teacher.safetensors")
    assert artifacts.read_header(tmp_path, "checkpoint") == HEADER


def test_info_comes_back_from_folder_or_file(module, tmp_path):
    export.export(tmp_path, module, INFO, HEADER)
    assert export.read_info(tmp_path) == INFO
    assert export.read_info(tmp_path / "teacher.safetensors") == INFO


def test_weights_are_float32_whatever_they_were(module, tmp_path):
    from safetensors.torch import load_file

    export.export(tmp_path, module.bfloat16(), INFO, HEADER)
    state = load_file(tmp_path / "teacher.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_same_export_is_the_same_file(module, tmp_path):
    for name in "ab":
        export.export(tmp_path / name, module, INFO, HEADER)
    for file in ("teacher.safetensors", "model.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weights_appear_last(module, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(export.safetensors_torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export.export(tmp_path, module, INFO, HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.parametrize(
    "change",
    [{"mean": [0.5]}, {"kwargs": 3}, {"std": ["x", 1, 1]}, {"image_size_px": None}, {"arch": None}],
)
def test_a_damaged_model_json_is_an_input_error(tmp_path, change):
    import dataclasses

    document = {**dataclasses.asdict(INFO), **change}
    if change == {"arch": None}:
        del document["arch"]
    (tmp_path / "model.json").write_text(json.dumps(document))
    with pytest.raises(errors.InputError, match="is damaged") as caught:
        export.read_info(tmp_path)
    assert caught.value.hint


def test_a_missing_model_json_is_an_input_error(tmp_path):
    with pytest.raises(errors.InputError, match="is missing"):
        export.read_info(tmp_path)
