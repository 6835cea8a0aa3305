from __future__ import annotations

import numpy as np
import pytest
import torch

from pathfm_cli import errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import masks, tokens


@pytest.fixture(scope="module")
def encoder():
    return weights.load("random/vit_tiny_patch16_224", image_size_px=64, device="cpu")


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


def test_pre_norm_tokens_become_post_norm_ones_by_the_last_norm(encoder):
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    before = tokens.encode(encoder, images, "pre-norm")
    after = tokens.encode(encoder, images)
    assert not torch.allclose(before, after, atol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(encoder.module.norm(before), after, atol=1e-5, rtol=1e-4)
    assert not encoder.module.norm._forward_pre_hooks


def labelled(count):
    rng = np.random.default_rng(0)
    return [
        masks.Labelled(
            rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), np.full((64, 64), i, np.uint8)
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("room", [tokens.MAX_CACHE_BYTES, 34 * 4 * 4 * 192 * 4])
def test_crops_keep_their_order_whether_their_tokens_fit_or_not(encoder, monkeypatch, room):
    monkeypatch.setattr(tokens, "MAX_CACHE_BYTES", room)
    crops, seen = labelled(tokens.BATCH + 3), []
    found = tokens.gather(iter(crops), 35, encoder, "post-norm", seen.append)
    assert len(found) == 35 and seen == [32, 3]
    assert (found.tokens_NhwD is None) == (room < 35 * 4 * 4 * 192 * 4)
    picked, labels = found.take(torch.tensor([34, 2]))
    assert picked.shape == (2, 4, 4, 192) and labels[:, 0, 0].tolist() == [34, 2]
    alone = tokens.encode(encoder, torch.from_numpy(crops[34].image[None]))
    torch.testing.assert_close(picked[:1], alone, atol=1e-5, rtol=1e-4)
    # A decoder must be able to learn from them.
    weight = torch.ones(192, requires_grad=True)
    (picked @ weight).sum().backward()
    assert weight.grad is not None


def test_no_crop_is_an_error(encoder):
    with pytest.raises(errors.InputError, match="No image of train"):
        tokens.gather(iter([]), 5, encoder, "post-norm", lambda more: None)


class Brightness(torch.nn.Module):
    """A decoder that ignores its tokens; it says which window it was asked about."""

    def __init__(self, size_px):
        super().__init__()
        self.size_px, self.asked = size_px, 0

    def shares(self, grid, size_px):
        assert size_px == self.size_px
        shares = torch.zeros((len(grid), 3, size_px, size_px))
        for window in range(len(grid)):
            shares[window, (self.asked + window) % 3] = 1.0
        self.asked += len(grid)
        return shares


def predict(image, encoder, *modules):
    return tokens.predict(image, lambda p: tokens.encode(encoder, p), modules, 3, 64, 48)


def test_windows_are_stitched_in_place(encoder):
    """Windows of 64 at stride 48 over 64 x 160: columns 0-63, 48-111 and 96-159, one class each."""
    image = np.zeros((64, 160, 3), np.uint8)
    both = predict(image, encoder, Brightness(64), Brightness(64))
    found = both[0].whole
    np.testing.assert_array_equal(found, both[1].whole)
    assert found.shape == (64, 160)
    assert (found[:, :48] == 0).all() and (found[:, 64:96] == 1).all()
    assert (found[:, 112:] == 2).all()
    # Where two windows overlap their sums tie, and the first class wins.
    assert (found[:, 48:64] == 0).all() and (found[:, 96:112] == 1).all()
    assert both[0].windows_WSS.shape == (3, 64, 64)
    assert both[0].windows_WSS[:, 5, 5].tolist() == [0, 1, 2]
    assert list(tokens.corners(64, 160, 64, 48)) == [(0, 0), (0, 48), (0, 96)]


def test_the_paper_has_25_windows_an_image():
    found = list(tokens.corners(1000, 1000, 224, 194))
    assert len(found) == 25 and found[0] == (0, 0) and found[-1] == (776, 776)


def test_a_small_image_is_padded_and_cut_back(encoder):
    found = predict(np.zeros((30, 50, 3), np.uint8), encoder, Brightness(64))[0]
    assert found.whole.shape == (30, 50) and (found.whole == 0).all()


def test_an_image_too_large_for_the_sums(encoder, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_SUM_FLOATS", 64 * 64 * 3 - 1)
    with pytest.raises(errors.SlideError, match="too many"):
        predict(np.zeros((64, 64, 3), np.uint8), encoder, Brightness(64))
