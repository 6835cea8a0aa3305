"""Cross-entropy in chunks, and iBOT's patch loss with it, against loops in float64."""

import math

import pytest
import torch

from pathfm_cli.pretrain.losses import chunked, ibot

ROWS, PROTOTYPES, WIDTH = 7, 11, 3


def reference(features_ND, prototypes_KD, targets_NK, weight_N, temperature):
    """sum_n w_n sum_k -q_nk ln p_nk, by definition."""
    log_p = torch.log_softmax(features_ND @ prototypes_KD.T / temperature, dim=1)
    terms = [-w * (q * row).sum() for w, q, row in zip(weight_N, targets_NK, log_p, strict=True)]
    return torch.stack(terms).sum()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, prototypes = normal(ROWS, WIDTH), normal(PROTOTYPES, WIDTH)
    targets = torch.softmax(normal(ROWS, PROTOTYPES) * 3, dim=1)
    targets[2] *= 2  # the targets of two views together
    weight = normal(ROWS).abs()
    return features.requires_grad_(), prototypes.requires_grad_(), targets, weight


@pytest.mark.parametrize("elements", [1, 3 * PROTOTYPES, 10**6])
def test_value_and_gradients_equal_the_reference(inputs, elements):
    features, prototypes, targets, weight = inputs
    expected = reference(*inputs, 0.1)
    gradients = torch.autograd.grad(expected, (features, prototypes))
    single = [t.detach().float().requires_grad_() for t in (features, prototypes)]
    loss = chunked.cross_entropy(
        *single, targets.float().__getitem__, weight.float(), 0.1, elements=elements
    )
    (3 * loss).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, exact in zip(single, gradients, strict=True):
        torch.testing.assert_close(ours.grad.double() / 3, exact, atol=1e-5, rtol=1e-4)


def test_gradients_in_float64_by_differences(inputs):
    features, prototypes, targets, weight = inputs

    def loss(x, w):
        return chunked.cross_entropy(x, w, targets.__getitem__, weight, 0.5, elements=30)

    assert torch.autograd.gradcheck(loss, (features, prototypes))


def test_chunks_ask_for_the_rows_once_and_in_order(inputs):
    features, prototypes, targets, weight = inputs
    asked = []

    def rows(part):
        asked.append(range(ROWS)[part])
        return targets[part]

    chunked.cross_entropy(features, prototypes, rows, weight, 0.1, elements=3 * PROTOTYPES)
    assert asked == [range(0, 3), range(3, 6), range(6, 7)]


def test_products_follow_autocast_and_the_sums_are_float32(inputs):
    features, prototypes, targets, weight = (t.detach().float() for t in inputs)
    features.requires_grad_(), prototypes.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.nn.functional.linear(features, prototypes)
        loss = chunked.cross_entropy(features, prototypes, targets.__getitem__, weight, 0.1)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    log_p = torch.log_softmax(logits.double() / 0.1, dim=1)
    expected = -(weight[:, None] * targets * log_p).sum()
    assert loss.dtype == features.grad.dtype == prototypes.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_rows_give_zero_with_a_gradient():
    features = torch.zeros(0, WIDTH, requires_grad=True)
    prototypes = torch.ones(PROTOTYPES, WIDTH, requires_grad=True)
    loss = chunked.cross_entropy(
        features, prototypes, torch.zeros(0, PROTOTYPES).__getitem__, torch.zeros(0), 0.1
    )
    loss.backward()
    assert loss.item() == 0
    assert features.grad.shape == (0, WIDTH)
    assert prototypes.grad.abs().sum() == 0


def test_without_gradients_only_the_value(inputs):
    with torch.no_grad():
        value = chunked.cross_entropy(*inputs[:2], inputs[2].__getitem__, inputs[3], 0.1)
    assert not value.requires_grad
    assert value.item() == pytest.approx(reference(*inputs, 0.1).item())


def test_patch_loss_is_a_mean_over_tokens_then_over_all_images(inputs):
    features, prototypes, targets, _ = inputs
    # Four images; the first has masked 3 tokens, the third 4, the others none.
    weight = torch.tensor([1 / 3] * 3 + [1 / 4] * 4)
    each = torch.stack(
        [
            reference(features[n : n + 1], prototypes, targets[n : n + 1], [1.0], 0.1)
            for n in range(ROWS)
        ]
    )
    expected = (each[:3].mean() + each[3:].mean()) / 4
    loss = ibot.patch_loss(features, prototypes, targets.__getitem__, weight, 4, 0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_blind_student_has_the_loss_ln_k():
    prototypes = torch.zeros(PROTOTYPES, WIDTH)
    targets = torch.eye(PROTOTYPES)[:2]
    loss = ibot.patch_loss(
        torch.ones(2, WIDTH), prototypes, targets.__getitem__, torch.tensor([0.5, 0.5]), 1, 0.1
    )
    assert loss.item() == pytest.approx(math.log(PROTOTYPES))


def test_select_takes_the_masked_tokens_of_all_images():
    tokens = torch.arange(12.0).view(2, 3, 2)
    picked = ibot.select(tokens, torch.tensor([1, 3, 5]))
    assert picked.tolist() == [[2, 3], [6, 7], [10, 11]]
