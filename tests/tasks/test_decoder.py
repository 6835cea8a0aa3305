from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from pathfm_cli import errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import decoder, masks, segmentation, tokens


@pytest.fixture(scope="module")
def encoder():
    return weights.load("random/vit_tiny_patch16_224", image_size_px=64, device="cpu")


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 14, 14), (1, 1, 1, 1)])
def test_enlarge_is_torch_interpolate(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(values, size=32, mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder.enlarge(values, 32), expected, atol=1e-6, rtol=1e-5)


def test_tokens_are_the_patches_of_timm_in_reading_order(encoder):
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    found = tokens.encode(encoder, images)
    assert found.shape == (2, 4, 4, 192)
    pixels = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = encoder.module.forward_features(pixels)[:, 1:]
    torch.testing.assert_close(found[:, 1, 2], expected[:, 6], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, 3, 3], expected[:, 15], atol=1e-4, rtol=1e-4)


def test_an_encoder_without_tokens_is_refused():
    convolutional = weights.load("random/resnet10t", device="cpu")
    with pytest.raises(errors.UsageError, match="no patch tokens"):
        tokens.encode(convolutional, torch.zeros((1, 64, 64, 3), dtype=torch.uint8))


def test_training_reaches_the_optimum_of_logistic_regression():
    """With constant crops every pixel of a crop has one token: a plain logistic regression."""
    from sklearn import linear_model

    rng = np.random.default_rng(0)
    z = rng.standard_normal((60, 4)).astype(np.float32)
    y = (z[:, 0] + 0.7 * rng.standard_normal(60) > 0).astype(np.uint8)
    grid = torch.from_numpy(z)[:, None, None].expand(60, 2, 2, 4).contiguous()
    labels = torch.from_numpy(y)[:, None, None].expand(60, 8, 8).contiguous()
    training = segmentation.Training(epochs=400, batch_size=60, lr=0.05, weight_decay=0.0)
    module = decoder.fit(grid, labels, 2, "linear", training, 0, lambda more: None)
    peer = linear_model.LogisticRegression(C=np.inf).fit(z, y)
    weight = (module.classify.weight[1] - module.classify.weight[0]).detach().numpy()
    np.testing.assert_allclose(weight, peer.coef_[0], rtol=0.02, atol=0.02)


def test_ignored_pixels_train_nothing():
    grid = torch.randn((4, 2, 2, 3), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros((4, 8, 8), dtype=torch.uint8)
    other = labels.clone()
    labels[:, :, 4:] = masks.IGNORE
    other[:, :, 4:] = 1
    training = segmentation.Training(epochs=3, batch_size=4)
    fits = [
        decoder.fit(grid, t, 2, "linear", training, 0, lambda more: None) for t in (labels, other)
    ]
    # With the ignored half left out only class 0 is seen, so its logit can only have grown.
    assert fits[0].classify.bias[0] > 0 > fits[0].classify.bias[1]
    assert not torch.equal(fits[0].classify.weight, fits[1].classify.weight)


def test_steps_and_progress():
    training = segmentation.Training(epochs=3, batch_size=4)
    assert training.steps(9) == 9
    seen = []
    grid, labels = torch.randn((9, 2, 2, 3)), torch.zeros((9, 4, 4), dtype=torch.uint8)
    decoder.fit(grid, labels, 2, "linear", training, 0, seen.append)
    assert seen == [1] * 9


def test_cache_keeps_the_order_of_the_crops(encoder):
    rng = np.random.default_rng(0)
    crops = [
        masks.Labelled(
            rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), np.full((64, 64), i, np.uint8)
        )
        for i in range(tokens.BATCH + 3)
    ]
    seen = []
    grid, labels = tokens.cache(iter(crops), 100, encoder, seen.append)
    assert grid.shape == (35, 4, 4, 192) and seen == [32, 3]
    assert labels[:, 0, 0].tolist() == list(range(35))
    alone = tokens.encode(encoder, torch.from_numpy(crops[34].image[None]))
    torch.testing.assert_close(grid[34:], alone, atol=1e-5, rtol=1e-4)


def test_cache_refuses_what_does_not_fit(encoder, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_CACHE_BYTES", 10 * 4 * 4 * 192 * 4)
    crop = masks.Labelled(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8))
    with pytest.raises(errors.UsageError, match="tokens of 20 crops") as caught:
        tokens.cache([crop], 20, encoder, lambda more: None)
    assert caught.value.hint == "--crops 10"


class Brightness(torch.nn.Module):
    """A decoder that ignores its tokens; it says which window it was asked about."""

    def __init__(self, size_px):
        super().__init__()
        self.size_px, self.asked = size_px, 0

    def forward(self, grid, size_px):
        assert size_px == self.size_px
        logits = torch.zeros((len(grid), 3, size_px, size_px))
        for window in range(len(grid)):
            logits[window, (self.asked + window) % 3] = 1.0
        self.asked += len(grid)
        return logits


def test_windows_are_stitched_in_place(encoder):
    """Windows of 64 at stride 48 over 64 x 160: columns 0-63, 48-111 and 96-159, one class each."""
    image = np.zeros((64, 160, 3), np.uint8)
    found = tokens.predict(image, encoder, Brightness(64), 3, 64, 48)
    assert found.shape == (64, 160)
    assert (found[:, :48] == 0).all() and (found[:, 64:96] == 1).all()
    assert (found[:, 112:] == 2).all()
    # Where two windows overlap their sums tie, and the first class wins.
    assert (found[:, 48:64] == 0).all() and (found[:, 96:112] == 1).all()


def test_a_small_image_is_padded_and_cut_back(encoder):
    found = tokens.predict(np.zeros((30, 50, 3), np.uint8), encoder, Brightness(64), 3, 64, 48)
    assert found.shape == (30, 50) and (found == 0).all()


def test_an_image_too_large_for_the_sums(encoder, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_SUM_FLOATS", 64 * 64 * 3 - 1)
    with pytest.raises(errors.SlideError, match="too many"):
        tokens.predict(np.zeros((64, 64, 3), np.uint8), encoder, Brightness(64), 3, 64, 48)


def test_unknown_decoder_and_no_epochs():
    with pytest.raises(errors.UsageError, match="no decoder 'mask'"):
        segmentation.Config(decoder="mask")
    with pytest.raises(errors.UsageError):
        segmentation.Training(epochs=0)
    assert set(decoder.DECODERS) == set(segmentation.DECODERS)
