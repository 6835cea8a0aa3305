"""Devices and precisions by name."""

import pytest
import torch

from pathfm_cli import errors
from pathfm_cli.model import device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_the_best_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.pick("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.pick("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick("auto").type == "cuda"


def test_named_devices_must_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.pick("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(errors.UsageError, match="has no device cuda:2") as caught:
        device.pick("cuda:2")
    assert "--device" in caught.value.hint
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(errors.UsageError, match="has no device cuda"):
        device.pick("cuda")
    with pytest.raises(errors.UsageError, match="has no device mps"):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        device.pick("mps")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cpu:x", "xpu"])
def test_other_names_are_usage_errors(name):
    with pytest.raises(errors.UsageError, match="There is no device"):
        device.pick(name)


def test_auto_precision_is_bf16_on_cuda_only():
    assert device.resolve(CPU, "auto") == "fp32"
    assert device.resolve(torch.device("mps"), "auto") == "fp32"
    assert device.resolve(CUDA, "auto") == "bf16"
    assert device.resolve(CUDA, "fp32") == "fp32"
    with pytest.raises(errors.UsageError, match="no precision 'fp16'"):
        device.resolve(CPU, "fp16")


def test_autocast_computes_in_bf16():
    layer, x = torch.nn.Linear(4, 4), torch.zeros(2, 4)
    with device.autocast(CPU, "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with device.autocast(CPU, "fp32"):
        assert layer(x).dtype == torch.float32
