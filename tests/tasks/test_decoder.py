from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from pathfm_cli import errors, tasks
from pathfm_cli.tasks import decoder, masks, segmentation, tokens


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 14, 14), (1, 1, 1, 1)])
def test_enlarge_is_torch_interpolate(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(values, size=32, mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder.enlarge(values, 32), expected, atol=1e-6, rtol=1e-5)


def crops(grid, labels):
    return tokens.Crops(grid, None, labels, lambda images: images)


def fitted(name, grid, labels, training):
    module = decoder.build(name, grid.shape[-1], 2, seed=0)
    losses = decoder.fit(module, crops(grid, labels), training, 0, lambda more: None)
    return module, losses


def test_training_reaches_the_optimum_of_logistic_regression():
    """With constant crops every pixel of a crop has one token: a plain logistic regression."""
    from sklearn import linear_model

    rng = np.random.default_rng(0)
    z = rng.standard_normal((60, 4)).astype(np.float32)
    y = (z[:, 0] + 0.7 * rng.standard_normal(60) > 0).astype(np.uint8)
    grid = torch.from_numpy(z)[:, None, None].expand(60, 2, 2, 4).contiguous()
    labels = torch.from_numpy(y)[:, None, None].expand(60, 8, 8).contiguous()
    training = segmentation.Training(epochs=400, batch_size=60, lr=0.05, weight_decay=0.0)
    module, losses = fitted("linear", grid, labels, training)
    peer = linear_model.LogisticRegression(C=np.inf).fit(z, y)
    weight = (module.classify.weight[1] - module.classify.weight[0]).detach().numpy()
    np.testing.assert_allclose(weight, peer.coef_[0], rtol=0.02, atol=0.02)
    assert len(losses) == 400 and losses[0] == pytest.approx(np.log(2)) and losses[-1] < 0.5


def test_ignored_pixels_train_nothing():
    grid = torch.randn((4, 2, 2, 3), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros((4, 8, 8), dtype=torch.uint8)
    other = labels.clone()
    labels[:, :, 4:] = masks.IGNORE
    other[:, :, 4:] = 1
    training = segmentation.Training(epochs=3, batch_size=4)
    (first, _), (second, _) = (fitted("linear", grid, t, training) for t in (labels, other))
    # With the ignored half left out only class 0 is seen, so its logit can only have grown.
    assert first.classify.bias[0] > 0 > first.classify.bias[1]
    assert not torch.equal(first.classify.weight, second.classify.weight)


def test_a_convolution_sees_neighbours_where_a_linear_layer_cannot():
    """The class of a token is the sign of its left neighbour."""
    grid = torch.randn((8, 8, 8, 1), generator=torch.Generator().manual_seed(0))
    truth = torch.zeros((8, 8, 8), dtype=torch.uint8)
    truth[:, :, 1:] = grid[:, :, :-1, 0] > 0
    labels = truth.repeat_interleave(2, 1).repeat_interleave(2, 2)
    training = segmentation.Training(epochs=150, batch_size=8, lr=0.01)
    (linear, _), (conv, _) = (fitted(n, grid, labels, training) for n in ("linear", "conv"))
    right = [
        (module.shares(grid, 16).argmax(1) == labels).float().mean() for module in (linear, conv)
    ]
    assert right[0] < 0.65 and right[1] > 0.85


def test_long_gradients_are_clipped():
    grid = 1000 * torch.ones((1, 1, 1, 1))
    labels = torch.ones((1, 1, 1), dtype=torch.uint8)
    training = segmentation.Training(epochs=1, batch_size=1, lr=0.1, clip_norm=1e-9)
    clipped, _ = fitted("linear", grid, labels, training)
    free, _ = fitted("linear", grid, labels, dataclasses.replace(training, clip_norm=None))
    # AdamW's first step is lr x sign of the gradient, but for its epsilon of 1e-8.
    assert float(free.classify.weight.detach()[1, 0]) == pytest.approx(0.1, rel=1e-3)
    assert clipped.classify.weight[1, 0] < 0.02


def test_the_learning_rate_follows_half_a_cosine_and_the_rest_reaches_the_optimiser(monkeypatch):
    rates, given, norms = [], [], []
    adamw, clip = torch.optim.AdamW, torch.nn.utils.clip_grad_norm_

    class Spy(adamw):
        def __init__(self, parameters, **settings):
            given.append(settings)
            super().__init__(parameters, **settings)

        def step(self, *arguments):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda p, norm: norms.append(norm) or clip(p, norm)
    )
    grid, labels = torch.ones((4, 1, 1, 1)), torch.ones((4, 1, 1), dtype=torch.uint8)
    training = segmentation.training("mask2former", epochs=2, batch_size=2, lr=0.2)
    fitted("linear", grid, labels, training)
    # 4 steps: .2 x (1 + cos(pi k / 4)) / 2; step 4, which is not taken, would have 0.
    assert rates == [pytest.approx(x, abs=1e-6) for x in (0.2, 0.1707107, 0.1, 0.0292893)]
    assert [one["weight_decay"] for one in given] == [0.05] and norms == [0.01] * 4


def test_training_ends_where_the_loss_is_not_finite():
    grid = torch.full((4, 2, 2, 3), float("nan"))
    seen = []
    module = decoder.build("linear", 3, 2, seed=0)
    labels = torch.zeros((4, 4, 4), dtype=torch.uint8)
    training = segmentation.Training(epochs=5, batch_size=2)
    losses = decoder.fit(module, crops(grid, labels), training, 0, seen.append)
    assert len(losses) == 1 and np.isnan(losses[0])
    assert sum(seen) == training.steps(4) == 10


def test_steps_and_progress():
    training = segmentation.Training(epochs=3, batch_size=4)
    assert training.steps(9) == 9
    seen = []
    grid, labels = torch.randn((9, 2, 2, 3)), torch.zeros((9, 4, 4), dtype=torch.uint8)
    module = decoder.build("linear", 3, 2, seed=0)
    decoder.fit(module, crops(grid, labels), training, 0, seen.append)
    assert seen == [1] * 9


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.models.mask2former", None)
    monkeypatch.delitem(sys.modules, "pathfm_cli.tasks.mask2former", raising=False)
    # An earlier import leaves it as an attribute of the package, which `from ... import` takes.
    monkeypatch.delattr(tasks, "mask2former", raising=False)
    with pytest.raises(errors.MissingExtra, match="needs the package transformers") as caught:
        decoder.build("mask2former", 6, 2, seed=0)
    assert caught.value.hint == "pip install 'pathfm[segment]'"


def test_unknown_names_and_no_epochs():
    with pytest.raises(errors.UsageError, match="no decoder 'mask'"):
        segmentation.Config(decoder="mask")
    with pytest.raises(errors.UsageError, match="no features 'norm'"):
        segmentation.Config(features="norm")
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}):
        with pytest.raises(errors.UsageError):
            segmentation.Training(**wrong)
    assert set(segmentation.TRAININGS) == set(segmentation.DECODERS)
    assert segmentation.training("mask2former", epochs=3, lr=None).weight_decay == 0.05
