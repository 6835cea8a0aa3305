"""The loss against facebookresearch/dino's formulas, written out in float64."""

import math

import pytest
import torch

from pathfm_cli.pretrain.losses import dino


def reference(student_VBK, teacher_GBK, centre_K, student_temperature, teacher_temperature):
    """`DINOLoss.forward` by its definition: double loop over view pairs."""
    total, terms = 0.0, 0
    for g, teacher in enumerate(teacher_GBK):
        q = torch.softmax((teacher - centre_K) / teacher_temperature, dim=-1)
        for v, student in enumerate(student_VBK):
            if v == g:
                continue
            log_p = torch.log_softmax(student / student_temperature, dim=-1)
            total = total + (-q * log_p).sum(dim=-1).mean()
            terms += 1
    assert terms == 2 * len(student_VBK) - 2
    return total / terms


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(6, 5, 400, generator=generator, dtype=torch.float64) / 3
    teacher = torch.randn(2, 5, 400, generator=generator, dtype=torch.float64) / 3
    centre = torch.randn(400, generator=generator, dtype=torch.float64) / 10
    return student, teacher, centre


def ours(student, teacher, centre_K):
    centre = dino.Centre(400, 0.9)
    centre.centre_K.copy_(centre_K)
    return dino.cross_entropy(student, centre.targets(teacher.float(), 0.04), 0.1)


def test_value_and_gradient_equal_the_reference(logits):
    student, teacher, centre = logits
    exact = student.clone().requires_grad_()
    expected = reference(exact, teacher, centre, 0.1, 0.04)
    expected.backward()
    single = student.float().requires_grad_()
    value = ours(single, teacher, centre)
    value.backward()
    assert abs(value.item() - expected.item()) <= 1e-6 * abs(expected.item())
    cosine = torch.cosine_similarity(single.grad.double().flatten(), exact.grad.flatten(), dim=0)
    assert cosine > 0.99999
    torch.testing.assert_close(single.grad.double(), exact.grad, atol=1e-6, rtol=1e-3)


def test_bf16_logits_are_summed_in_float32(logits):
    student, teacher, centre = logits
    rounded = student.bfloat16()
    expected = reference(rounded.double(), teacher, centre, 0.1, 0.04)
    assert ours(rounded, teacher, centre).item() == pytest.approx(expected.item(), rel=1e-5)


def test_two_views_leave_only_the_crossed_pairs(logits):
    student, teacher, centre = logits
    expected = reference(student[:2], teacher, centre, 0.1, 0.04)
    assert ours(student[:2].float(), teacher, centre).item() == pytest.approx(expected.item())


def test_a_uniform_network_has_loss_and_entropy_ln_k():
    zeros = torch.zeros(4, 3, 1000)
    targets = dino.Centre(1000, 0.9).targets(zeros[:2], 0.04)
    assert dino.cross_entropy(zeros, targets, 0.1).item() == pytest.approx(math.log(1000))
    assert dino.entropy(targets).item() == pytest.approx(math.log(1000))


def test_entropy_of_one_hot_targets_is_zero():
    targets = torch.nn.functional.one_hot(torch.tensor([[0, 2], [1, 1]]), 3).float()
    assert dino.entropy(targets).item() == 0


def test_centre_moves_by_the_mean_over_views_and_batch():
    centre = dino.Centre(2, 0.9)
    centre.update(torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[5.0, 2.0], [7.0, 2.0]]]))
    torch.testing.assert_close(centre.centre_K, torch.tensor([0.4, 0.1]))
    centre.update(torch.zeros(2, 2, 2))
    torch.testing.assert_close(centre.centre_K, torch.tensor([0.36, 0.09]))
