"""Grey optical density: the formula, what it does not see, and encoders that are fed it."""

import json
import math

import numpy as np
import pytest
import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import density, export, vit, weights

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "img_size": 16}


def test_density_of_two_pixels_is_written_out():
    pixels = torch.tensor([[[[255.0, 0.0]], [[255.0, 127.0]], [[255.0, 63.0]]]]) / 255
    # Densities: white -ln(256/256) = 0; the other ln 256, ln 2 and ln 4, in the mean 11/3 ln 2.
    dark = 11 / 3 * math.log(2)
    expected = 0.5 * dark / (dark / math.sqrt(2) + 1e-3) / 3
    found = density.standardise(pixels)
    assert found.shape == (1, 3, 1, 2)
    for channel in range(3):
        assert found[0, channel, 0].tolist() == pytest.approx([-expected, expected], rel=1e-5)


def test_more_of_a_stain_looks_the_same():
    grey = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.3
    images = grey.expand(-1, 3, -1, -1)
    strong = ((images * 255 + 1) / 256) ** 1.5  # 1.5 times the density
    faint_and_strong = density.standardise(images), density.standardise((strong * 256 - 1) / 255)
    torch.testing.assert_close(*faint_and_strong, rtol=0.02, atol=1e-3)


def test_an_image_of_one_colour_is_zeros():
    assert density.standardise(torch.full((1, 3, 4, 4), 0.7)).abs().max() < 1e-3


def _export(folder, **changes):
    torch.manual_seed(0)
    arguments = {**vit.defaults("vit_tiny_patch16_224"), **TINY, "global_pool": "avg"}
    module = vit.build("vit_tiny_patch16_224", **arguments).eval()
    info = export.Info(
        arch="vit_tiny_patch16_224",
        kwargs=arguments,
        image_size_px=16,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        **changes,
    )
    export.export(folder, module, info, artifacts.Header(kind="checkpoint"))
    return module


def test_an_encoder_of_densities_gets_them_from_uint8_pixels(tmp_path):
    module = _export(tmp_path, input="density", embedding="avg")
    encoder = weights.load(tmp_path, device="cpu", precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        seen = density.standardise(floats)
        torch.testing.assert_close(encoder.encode(pixels), module(seen), rtol=1e-4, atol=1e-5)
        tokens = encoder.module.forward_features(floats * 2 - 1)
        torch.testing.assert_close(tokens, module.forward_features(seen), rtol=1e-4, atol=1e-5)
    assert encoder.embedding == "avg" and encoder.settings()["input"] == "density"


def test_the_input_is_part_of_an_encoders_identity(tmp_path):
    _export(tmp_path / "a")
    _export(tmp_path / "b", input="density")
    assert weights.load(tmp_path / "a").id != weights.load(tmp_path / "b").id


def test_a_run_of_before_there_was_a_choice_sees_colours(tmp_path):
    _export(tmp_path)
    file = tmp_path / export.MODEL
    document = json.loads(file.read_text())
    del document["input"]
    file.write_text(json.dumps(document))
    assert export.read_info(tmp_path).input == "rgb"


def test_an_unknown_input_is_refused(tmp_path):
    _export(tmp_path)
    file = tmp_path / export.MODEL
    file.write_text(file.read_text().replace('"rgb"', '"hsv"'))
    with pytest.raises(errors.InputError, match="input is 'hsv'"):
        weights.load(tmp_path)
