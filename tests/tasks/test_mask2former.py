"""The light Mask2Former: its first values, its loss, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathfm_cli.tasks import decoder, masks, segmentation, tokens

pytest.importorskip("transformers", reason="pathfm[segment] is not installed")

from pathfm_cli.tasks import mask2former  # noqa: E402


@pytest.fixture
def dirty_memory():
    """Memory that torch hands out uninitialised holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


def squares(count, seed=0):
    """Tokens (N, 8, 8, 6) and labels (N, 32, 32): a square of class 1 or 2 on background."""
    rng = np.random.default_rng(seed)
    grid = rng.standard_normal((count, 8, 8, 6)).astype(np.float32)
    truth = np.zeros((count, 8, 8), np.uint8)
    for number in range(count):
        row, column = rng.integers(0, 5, 2)
        truth[number, row : row + 3, column : column + 4] = 1 + number % 2
    grid[..., :3] += 3 * np.eye(3, dtype=np.float32)[truth]
    labels = truth.repeat(4, axis=1).repeat(4, axis=2)
    return torch.from_numpy(grid), torch.from_numpy(labels)


def test_thirty_constructions_on_dirty_memory_have_a_finite_loss(dirty_memory):
    """The bare pixel decoder keeps what it finds in memory as its level embedding."""
    bare = mask2former.modeling.Mask2FormerPixelDecoder(mask2former.config(3), [6] * 3)
    assert bare.level_embed.isnan().all()
    grid, labels = squares(1)
    for seed in range(30):
        module = decoder.build("mask2former", 6, 3, seed)
        assert all(value.isfinite().all() for value in module.state_dict().values())
        assert 0.5 < module.pixels.level_embed.std() < 1.5
        assert module.loss(grid, labels).isfinite()


def test_it_has_the_sizes_of_the_paper():
    module = decoder.build("mask2former", 384, 5, seed=0)
    assert module.queries.queries_features.weight.shape == (32, 32)
    assert len(module.pixels.encoder.layers) == 4
    assert module.pixels.encoder.layers[0].self_attn.n_heads == 4
    assert module.pixels.mask_projection.out_channels == 32
    assert module.classify.out_features == 6
    assert 0.7e6 < sum(value.numel() for value in module.parameters()) < 0.8e6
    classes, shapes = module._predict(torch.zeros((1, 14, 14, 384)))[-1]
    assert classes.shape == (1, 32, 6) and shapes.shape == (1, 32, 14, 14)


def test_the_same_seed_gives_the_same_decoder_and_leaves_the_world_alone():
    state = torch.get_rng_state()
    first, again, other = (decoder.build("mask2former", 6, 3, s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixels.level_embed"], other["pixels.level_embed"])


def test_shares_are_class_times_mask_summed_over_the_queries(monkeypatch):
    module = decoder.build("mask2former", 6, 2, seed=0)
    low, high = -30.0, 30.0
    classes = torch.full((1, 32, 3), low)
    classes[0, :, 2] = high  # all queries mean nothing, but for two
    classes[0, 0] = torch.tensor([high, low, low])
    classes[0, 1] = torch.tensor([low, high, low])
    shapes = torch.full((1, 32, 1, 2), low)
    shapes[0, 0, 0, 0] = shapes[0, 1, 0, 1] = high
    monkeypatch.setattr(module, "_predict", lambda tokens: [(classes, shapes)])
    shares = module.shares(torch.zeros((1, 1, 2, 6)), 4)
    assert shares.argmax(1)[0].tolist() == [[0, 0, 1, 1]] * 4
    torch.testing.assert_close(shares.sum(1), torch.ones((1, 4, 4)))


def test_shares_of_all_classes_sum_to_one():
    module = decoder.build("mask2former", 6, 3, seed=0)
    grid, _ = squares(2)
    with torch.inference_mode():
        shares = module.shares(grid, 32)
    assert shares.min() >= 0
    torch.testing.assert_close(shares.sum(1), torch.ones((2, 32, 32)))


def test_the_loss_is_the_weighted_sum_over_all_layers():
    module = decoder.build("mask2former", 6, 3, seed=0)
    grid, labels = squares(2)
    labels[0, :4] = masks.IGNORE
    torch.manual_seed(0)
    found = float(module.loss(grid, labels).detach())
    predictions = module._predict(grid)
    assert len(predictions) == 4
    present = [torch.tensor([0, 1]), torch.tensor([0, 2])]
    wanted = [torch.stack([labels[i] == c for c in each]).float() for i, each in enumerate(present)]
    torch.manual_seed(0)
    total = 0.0
    for classes, shapes in (predictions[-1], *predictions[:-1]):
        parts = module.criterion(shapes, classes, wanted, present)
        total += 2 * parts["loss_cross_entropy"] + 5 * parts["loss_mask"] + 5 * parts["loss_dice"]
    assert found == pytest.approx(float(total.detach()), rel=1e-5)


def fit(epochs, count):
    grid, labels = squares(count)
    crops = tokens.Crops(grid, None, labels, lambda images: images)
    training = segmentation.training("mask2former", epochs=epochs, batch_size=4, lr=4e-3)
    module = decoder.build("mask2former", 6, 3, seed=0)
    return module, decoder.fit(module, crops, training, 0, lambda more: None)


def test_it_learns():
    module, losses = fit(epochs=8, count=16)
    assert losses[-1] < 0.8 * losses[0]
    grid, labels = squares(16)
    with torch.inference_mode():
        found = module.shares(grid, 32).argmax(1)
    hits = ((found == labels) & (labels > 0)).sum()
    # The best map of one class has 0.16.
    assert 2 * hits / ((found > 0).sum() + (labels > 0).sum()) > 0.35


def test_the_same_seed_learns_the_same():
    first, again = (fit(epochs=1, count=4)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
