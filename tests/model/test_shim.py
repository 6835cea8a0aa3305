"""The torchvision shim, in fresh processes: what is imported first decides."""

import subprocess
import sys

import pytest


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture(scope="module")
def broken():
    """Whether the installed torchvision cannot be imported by itself."""
    done = python("import torch, torchvision")
    return done.returncode != 0 and "torchvision::nms does not exist" in done.stderr


def test_timm_and_transforms_work_after_the_shim():
    code = """
from pathfm_cli.model import shim
shim.apply(); shim.apply()
import timm, torch
from torchvision.transforms import v2
from torchvision import ops
model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 192)
assert v2.functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_matching_torchvision_is_left_alone(broken):
    done = python("from pathfm_cli.model import shim; print(shim.apply() is None)")
    assert done.stdout.strip() == str(not broken), done.stderr


def test_without_torchvision_nothing_is_defined():
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find(name, *rest)
from pathfm_cli.model import shim
assert shim.apply() is None
import torch
assert not hasattr(torch.ops.torchvision, "nms")
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_missing_kernels_say_so(broken):
    if not broken:
        pytest.skip("the installed torchvision has its kernels")
    code = """
from pathfm_cli.model import shim
shim.apply()
import torch
from torchvision import ops
ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
"""
    assert python(code).returncode != 0
