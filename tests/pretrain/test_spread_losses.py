"""KoLeo and KDE against their formulas in float64, and that both push apart."""

import math

import pytest
import torch

from pathfm_cli import errors
from pathfm_cli.pretrain.losses import kde, koleo


def koleo_reference(x_GBD):
    """Sum over views of -1/B sum_i ln min_j |x_i - x_j|, on the sphere; loops over pairs."""
    total = 0.0
    for view in x_GBD.double():
        x = view / view.norm(dim=1, keepdim=True)
        for i in range(len(x)):
            nearest = min((x[i] - x[j]).norm() for j in range(len(x)) if j != i)
            total = total - torch.log(nearest) / len(x)
    return total


def kde_reference(x_GBD, concentration):
    """Sum over views of 1/B sum_i ln 1/B sum_j exp(c (cos(i, j) - 1)); loops over pairs."""
    total = 0.0
    for view in x_GBD.double():
        x = view / view.norm(dim=1, keepdim=True)
        for i in range(len(x)):
            density = sum(torch.exp(concentration * (x[i] @ x[j] - 1)) for j in range(len(x)))
            total = total + torch.log(density / len(x)) / len(x)
    return total


LOSSES = {
    "koleo": (lambda x: koleo.koleo(x, gathered=False), koleo_reference),
    "kde": (lambda x: kde.kde(x, 5.0, gathered=False), lambda x: kde_reference(x, 5.0)),
}


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


@pytest.fixture
def features():
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


def test_value_and_gradient_equal_the_formula(loss, features):
    ours, reference = loss
    exact = features.double().requires_grad_()
    expected = reference(exact)
    expected.backward()
    single = features.clone().requires_grad_()
    value = ours(single)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(single.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


def test_by_hand():
    square = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]]])
    assert koleo.koleo(square, gathered=False).item() == pytest.approx(-math.log(math.sqrt(2)))
    density = (1 + 2 * math.exp(-5) + math.exp(-10)) / 4
    assert kde.kde(square, 5.0, gathered=False).item() == pytest.approx(math.log(density))


def test_a_step_down_the_gradient_drives_neighbours_apart(loss):
    ours, _ = loss
    x = torch.tensor([[[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]]], requires_grad=True)
    ours(x).backward()
    assert x.grad[0, 0, 1] < 0 < x.grad[0, 1, 1]


def test_minimising_spreads_the_features(loss):
    ours, _ = loss
    noise = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(1))
    x = torch.nn.Parameter(torch.ones(1, 16, 8) + noise / 2)
    before = mean_cosine(x)
    optimiser = torch.optim.SGD([x], lr=1.0)
    for _ in range(50):
        optimiser.zero_grad()
        ours(x).backward()
        optimiser.step()
    assert before > 0.7
    assert mean_cosine(x) < before / 2


def mean_cosine(x):
    unit = torch.nn.functional.normalize(x.detach()[0], dim=-1)
    cosine = unit @ unit.T
    return ((cosine.sum() - cosine.trace()) / (16 * 15)).item()


def test_duplicates_have_a_finite_loss_and_gradient(loss):
    ours, _ = loss
    x = torch.ones(2, 3, 4, requires_grad=True)
    value = ours(x)
    value.backward()
    assert math.isfinite(value.item())
    assert x.grad.isfinite().all()


def test_equal_features_have_the_largest_kde():
    assert kde.kde(torch.ones(2, 3, 4), 5.0, gathered=False).item() == pytest.approx(0, abs=1e-6)


def test_views_are_never_compared(loss, features):
    ours, _ = loss
    apart = sum(ours(features[g : g + 1]) for g in range(2))
    torch.testing.assert_close(ours(features), apart)


def test_float32_under_autocast(loss, features):
    ours, reference = loss
    low = features.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ours(low)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference(low).item(), rel=1e-5)


def test_koleo_of_one_image_is_refused():
    with pytest.raises(errors.UsageError, match="one at a time"):
        koleo.koleo(torch.ones(2, 1, 4), gathered=False)
