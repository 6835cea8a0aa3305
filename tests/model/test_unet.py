from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import torch as safetensors_torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import unet

WIDTHS = (4, 6)


@pytest.fixture(scope="module")
def shipped() -> unet.Segmenter:
    return unet.load(device="cpu")


def header(**settings: object) -> artifacts.Header:
    return artifacts.Header(
        kind="segmenter", settings={"widths": list(WIDTHS), "mpp": 8.0, **settings}
    )


def test_the_network_in_the_package_is_small(shipped: unet.Segmenter) -> None:
    assert sum(p.numel() for p in shipped.module.parameters()) <= 2_000_000
    assert unet.SHIPPED.stat().st_size <= 8_000_000
    assert 8 <= shipped.mpp <= 16 and not shipped.module.training


@pytest.mark.parametrize("size", [(1, 1), (15, 40), (64, 33)])
def test_every_size_is_answered_with_probabilities(
    shipped: unet.Segmenter, size: tuple[int, int]
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = shipped.probability(rgb)
    assert found.shape == size and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1


def test_tiles_leave_no_seams(shipped: unet.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    whole = shipped.probability(rgb)
    monkeypatch.setattr(unet, "CORE_PX", 112)
    assert np.abs(shipped.probability(rgb) - whole).max() < 1e-4


def test_a_pixel_sees_no_farther_than_the_margin(shipped: unet.Segmenter) -> None:
    x_BCHW = torch.zeros(1, 3, 448, 448, requires_grad=True)
    shipped.module(x_BCHW)[0, 0, 224, 224].backward()
    seen = np.flatnonzero(np.abs(x_BCHW.grad.numpy()).sum(axis=(0, 1, 2)))
    assert 0 < max(224 - seen.min(), seen.max() - 224) <= unet.MARGIN_PX


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    module = unet.UNet(WIDTHS).eval()
    record = unet.save(tmp_path / "u.safetensors", module, header())
    found = unet.load(tmp_path / "u.safetensors", "cpu")
    assert record["kind"] == "segmenter" and found.id == record["id"] and found.mpp == 8.0
    for name, value in module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value)


@pytest.mark.parametrize(
    "settings",
    [
        {"widths": [4, 8]},
        {"widths": []},
        {"widths": [4, 10**9]},
        {"widths": "wide"},
        {"widths": None},
        {"mpp": "fine"},
        {"mpp": 0},
        {"mpp": float("nan")},
        {"mpp": None},
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, settings: dict) -> None:
    unet.save(tmp_path / "u.safetensors", unet.UNet(WIDTHS), header(**settings))
    with pytest.raises(errors.InputError, match="does not hold the weights of a tissue U-Net"):
        unet.load(tmp_path / "u.safetensors", "cpu")


def test_a_foreign_or_damaged_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    safetensors_torch.save_file({"x": torch.zeros(2)}, foreign)
    with pytest.raises(errors.InputError):
        unet.load(foreign, "cpu")
    whole = unet.SHIPPED.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.InputError):
        unet.load(tmp_path / "cut.safetensors", "cpu")
    with pytest.raises(errors.InputError, match="does not exist"):
        unet.load(tmp_path / "none.safetensors", "cpu")


def test_doubt_is_binary_entropy() -> None:
    """H(1/2) = 1 bit, H(0.11) = 0.49992 bit, H(0) = H(1) = 0."""
    p = np.array([0.5, 0.11, 0.89, 0, 1], np.float32)
    assert unet.entropy_bits(p) == pytest.approx([1, 0.49992, 0.49992, 0, 0], abs=1e-4)


def test_one_thread_is_given_back() -> None:
    before = torch.get_num_threads()
    with unet.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    module = unet.UNet(WIDTHS)
    with torch.no_grad():
        module.head.bias[2] = value
    unet.save(tmp_path / "u.safetensors", module, header())
    with pytest.raises(errors.InputError, match="does not hold the weights of a tissue U-Net"):
        unet.load(tmp_path / "u.safetensors", "cpu")


def test_padding_is_cut_off_where_it_was_added(shipped: unet.Segmenter) -> None:
    """Pixels beyond the right and lower edge repeat the edge; the answer starts at the corner."""
    rgb = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rgb[40:], rgb[:, 37:] = rgb[39:40], rgb[:, 36:37]
    whole = shipped.probability(rgb)
    part = shipped.probability(np.ascontiguousarray(rgb[:40, :37]))
    alike = np.abs(part - whole[:40, :37]).max()
    assert alike < np.abs(part - whole[-40:, -37:]).max() / 2
