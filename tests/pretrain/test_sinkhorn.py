"""Sinkhorn-Knopp against the plain iteration in float64, and where exponentials overflow."""

import pytest
import torch

from pathfm_cli.pretrain.losses import sinkhorn

PREFERENCE = torch.tensor([0.2, 0.0, 0.0, -0.1, 0.0])
"""What the teacher likes about some prototypes whatever the sample."""


def reference(logits_NK, temperature, iterations=3):
    """DINOv2's `sinkhorn_knopp_teacher` by its definition, in exponentials of float64.

    Only the largest logit of all is subtracted, which a matrix that sums to 1 does not notice.
    """
    logits = logits_NK.double() / temperature
    q = torch.exp(logits - logits.max()).T
    prototypes, samples = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / prototypes
        q = q / q.sum(dim=0, keepdim=True) / samples
    return (q * samples).T


def balanced(logits_NK, temperature=0.05, iterations=3):
    return sinkhorn.balance(logits_NK, temperature, iterations).rows(slice(None))


@pytest.fixture
def logits():
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) / 4


def test_equals_the_reference(logits):
    torch.testing.assert_close(
        balanced(logits).double(), reference(logits, 0.05), atol=1e-6, rtol=1e-5
    )


def test_two_by_two_by_hand():
    # exp of [[ln 4, 0], [0, 0]] is [[4, 1], [1, 1]]: prototypes make it [[.8, .5], [.2, .5]], and
    # samples [[8/13, 5/13], [2/7, 5/7]].
    logits = torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()
    expected = torch.tensor([[8 / 13, 5 / 13], [2 / 7, 5 / 7]])
    torch.testing.assert_close(balanced(logits, 1.0, 1), expected)


def test_samples_and_prototypes_sum_right_after_three_iterations():
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) / 10 + PREFERENCE
    targets = balanced(logits, 0.1)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(targets.sum(dim=0), torch.full((5,), 64 / 5), atol=0, rtol=0.02)
    alone = torch.softmax(logits / 0.1, dim=1).sum(dim=0)
    assert (alone / (64 / 5) - 1).abs().max() > 1


@pytest.mark.parametrize("offset", [0.0, 70_000.0])
def test_logits_beyond_float16_and_beyond_exp(offset):
    # Steps of 1/128 near 70,000 are exact in float32; float16 ends at 65,504, and exp at 88.
    steps = torch.randint(-200, 200, (12, 5), generator=torch.Generator().manual_seed(1))
    logits = steps / 128 + offset
    assert logits.half().isinf().any() == bool(offset)
    expected = reference(steps / 128, 0.05)
    targets = balanced(logits)
    torch.testing.assert_close(targets.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(12))


def test_wide_logits_stay_finite_and_balanced():
    # One sample for each prototype, and exponents up to 90,000 / 0.05.
    logits = torch.eye(4) * 90_000
    torch.testing.assert_close(balanced(logits), torch.eye(4))
    torch.testing.assert_close(balanced(torch.zeros(4, 4)), torch.full((4, 4), 0.25))


def test_a_shift_of_a_prototype_changes_nothing_but_one_of_a_sample_does(logits):
    shift = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    torch.testing.assert_close(balanced(logits + shift), balanced(logits), atol=1e-5, rtol=1e-4)
    rows = torch.linspace(-1, 1, 12)[:, None]
    difference = (balanced(logits + rows) - balanced(logits)).abs().max()
    assert difference > 0.05
    torch.testing.assert_close(
        balanced(logits + rows).double(), reference(logits + rows, 0.05), atol=1e-5, rtol=1e-4
    )


def test_slices_and_small_parts_give_the_same(logits, monkeypatch):
    whole = balanced(logits)
    monkeypatch.setattr(sinkhorn, "ELEMENTS", 7)
    parts = sinkhorn.balance(logits, 0.05, 3)
    torch.testing.assert_close(
        torch.cat([parts.rows(slice(0, 5)), parts.rows(slice(5, 99))]), whole, atol=1e-6, rtol=1e-5
    )


def test_bf16_logits_are_balanced_in_float32(logits):
    rounded = logits.bfloat16()
    targets = balanced(rounded)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.double(), reference(rounded, 0.05), atol=1e-5, rtol=1e-4)


def test_nothing_to_balance():
    assert balanced(torch.zeros(0, 5)).shape == (0, 5)
