"""Gram anchoring by its formula, looped over pairs in float64."""

import pytest
import torch

from pathfm_cli.pretrain.losses import gram


def reference(student_IND, anchor_IND):
    terms = []
    for student, anchor in zip(student_IND.double(), anchor_IND.double(), strict=True):
        for i in range(len(student)):
            for j in range(len(student)):
                ours = torch.cosine_similarity(student[i], student[j], dim=0)
                theirs = torch.cosine_similarity(anchor[i], anchor[j], dim=0)
                terms.append((ours - theirs) ** 2)
    return torch.stack(terms).mean()


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, width, generator=generator) for width in (4, 6)]


def test_value_and_gradient_equal_the_formula(features):
    student, anchor = features
    exact = student.double().requires_grad_()
    expected = reference(exact, anchor)
    expected.backward()
    single = student.clone().requires_grad_()
    value = gram.gram(single, anchor)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(single.grad.double(), exact.grad, atol=1e-6, rtol=1e-4)


def test_by_hand():
    # Cosines 1 and 0 of two patches: both off-diagonal pairs of four differ by 1.
    same, across = (
        torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]),
        torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]),
    )
    assert gram.gram(same, across).item() == 0.5


def test_rotation_and_length_are_free(features):
    student, _ = features
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    assert gram.gram(student, 3 * student @ rotation).item() == pytest.approx(0, abs=1e-12)


def test_float32_under_autocast(features):
    student, anchor = (x.bfloat16() for x in features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = gram.gram(student, anchor)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference(student, anchor).item(), rel=1e-5)
