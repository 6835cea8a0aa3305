"""A step of the method against facebookresearch/dino's training loop, written out."""

import math

import pytest
import torch
from torch.nn import functional

from pathfm_cli.pretrain import dino, networks, place

HERE = place.Place(0, 1, torch.device("cpu"))


def crops(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(n, 3, s, s, generator=generator) for n, s in ((8, 32), (8, 16))]


def reference(settings, steps):
    """`main_dino.train_one_epoch` with `DINOLoss`, batch 4, 2 + 2 views; returns all it changes."""
    student, teacher = networks.pair(settings)
    named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if n.endswith(".bias") or p.ndim == 1]
    decayed = [p for n, p in named if not (n.endswith(".bias") or p.ndim == 1)]
    optimiser = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}], fused=False
    )
    centre, losses = torch.zeros(1, 64), []
    for step in range(steps):
        total, warmup, peak = 20, 3, 4e-3 * 4 / 256
        if step < warmup:
            lr = peak * step / (warmup - 1)
        else:
            lr = 1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * (step - 3) / (total - 3)))
        phase = 1 + math.cos(math.pi * step / total)
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.param_groups[0]["weight_decay"] = 0.4 + 0.5 * (0.04 - 0.4) * phase
        momentum = 1.0 + 0.5 * (0.996 - 1.0) * phase
        temperature = [0.03, 0.035, 0.04][step // 3] if step < 9 else 0.04
        big, small = crops(step)
        teacher_out = teacher([big])
        student_out = torch.cat([student([big]), student([small])]) / 0.1
        views = student_out.chunk(4)
        targets = functional.softmax((teacher_out - centre) / temperature, dim=-1).detach().chunk(2)
        pairs = [
            torch.sum(-q * functional.log_softmax(views[v], dim=-1), dim=-1).mean()
            for i, q in enumerate(targets)
            for v in range(4)
            if v != i
        ]
        loss = sum(pairs) / len(pairs)
        centre = centre * 0.9 + teacher_out.mean(dim=0, keepdim=True) * 0.1
        optimiser.zero_grad()
        (loss + settings.loss.koleo * spread(student.backbone(big))).backward()
        for _, parameter in named:
            coefficient = 3.0 / (parameter.grad.norm() + 1e-6)
            if coefficient < 1:
                parameter.grad.mul_(coefficient)
        if step // 3 < 2:
            for name, parameter in named:
                if "last_layer" in name:
                    parameter.grad = None
        optimiser.step()
        with torch.no_grad():
            for q, k in zip(student.parameters(), teacher.parameters(), strict=True):
                k.mul_(momentum).add_((1 - momentum) * q)
        losses.append(loss.item())
    return losses, student, teacher, centre


def spread(embeddings):
    """KoLeo, image by image: -log of the distance to the nearest other, summed over two views."""
    total = 0.0
    for view in functional.normalize(embeddings, dim=-1).chunk(2):
        for number, own in enumerate(view):
            others = [other for place, other in enumerate(view) if place != number]
            total = total - torch.log(min((own - other).norm() for other in others)) / len(view)
    return total


@pytest.mark.parametrize("koleo", [0.0, 0.1])
def test_twenty_steps_equal_the_reference_loop(micro, koleo):
    settings = micro("model.drop_path_rate=0.0", "train.steps=20", f"loss.koleo={koleo}")
    losses, student, teacher, centre = reference(settings, 20)
    method = dino.Dino(settings, HERE)
    ours = [method.step(step, crops(step)).loss.item() for step in range(20)]
    assert ours == pytest.approx(losses, rel=1e-5)
    assert len({round(loss, 3) for loss in losses}) > 6, "the losses must move"
    for ours_, theirs in ((method.student, student), (method.teacher, teacher)):
        for name, expected in theirs.state_dict().items():
            # Keys' biases have no true gradient; Adam blows its rounding up to the learning rate.
            atol = 1e-4 if name.endswith("qkv.bias") else 2e-6
            torch.testing.assert_close(ours_.state_dict()[name], expected, atol=atol, rtol=1e-4)
    torch.testing.assert_close(method.centre.centre_K, centre[0], atol=1e-6, rtol=1e-4)


def in_parts(crops_, count):
    """Views of each part of a batch; crops lie view by view, two global and two local ones."""
    views = [images.unflatten(0, (2, -1)) for images in crops_]
    size = views[0].shape[1] // count
    for start in range(0, size * count, size):
        yield [images[:, start : start + size].flatten(0, 1) for images in views]


@pytest.mark.parametrize("count", [2, 4])
def test_a_batch_in_parts_trains_as_a_whole_one(micro, count):
    """Stochastic depth and centre included; only the order of additions differs."""
    whole, parted = (dino.Dino(micro("loss.freeze_last_layer_epochs=0"), HERE) for _ in range(2))
    for step in range(4):
        one = whole.step(step, crops(step))
        two = parted.step_in_parts(step, in_parts(crops(step), count), count)
        assert two.loss.item() == pytest.approx(one.loss.item(), rel=1e-6)
        assert two.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-5)
        for name in ("entropy", "marginal_entropy"):
            values = (getattr(outcome.measures, name).item() for outcome in (one, two))
            assert next(values) == pytest.approx(next(values), rel=1e-5)
    torch.testing.assert_close(parted.centre.centre_K, whole.centre.centre_K, atol=1e-6, rtol=1e-5)
    for name, expected in whole.teacher.state_dict().items():
        atol = 1e-5 if name.endswith("qkv.bias") else 2e-6
        torch.testing.assert_close(
            parted.teacher.state_dict()[name], expected, atol=atol, rtol=1e-4
        )


def test_layers_near_the_pixels_learn_slower(micro):
    """With two blocks and a decay of 0.5: what AdamW's first step moves, by its sign."""
    slow = dino.Dino(
        micro(
            "optim.layer_decay=0.5",
            "optim.patch_embed_lr=0.2",
            "optim.lr_rule=absolute",
            "optim.base_lr=1e-3",
            "optim.warmup_epochs=0",
            "optim.weight_decay=0.0",
            "loss.freeze_last_layer_epochs=0",
        ),
        HERE,
    )
    before = {name: p.detach().clone() for name, p in slow.student.named_parameters()}
    slow.step(0, crops(0))
    moved = {
        name: (p - before[name]).abs().max().item() for name, p in slow.student.named_parameters()
    }
    expected = {
        "backbone.patch_embed.proj.weight": 1e-3 * 0.5**3 * 0.2,
        "backbone.pos_embed": 1e-3 * 0.5**3,
        "backbone.cls_token": 1e-3 * 0.5**3,
        "backbone.blocks.0.mlp.fc1.weight": 1e-3 * 0.5**2,
        "backbone.blocks.1.mlp.fc1.weight": 1e-3 * 0.5,
        "backbone.norm.weight": 1e-3,
        "head.mlp.0.weight": 1e-3,
        "head.last_layer.weight_v": 1e-3,
    }
    assert {name: moved[name] for name in expected} == pytest.approx(expected, rel=0.01)


def test_stochastic_depth_is_a_function_of_seed_and_step(micro):
    first, second = (dino.Dino(micro(), HERE) for _ in range(2))
    torch.manual_seed(99)
    one = first.step(3, crops(0)).loss
    torch.manual_seed(7)
    assert second.step(3, crops(0)).loss.equal(one)
    assert not dino.Dino(micro(), HERE).step(4, crops(0)).loss.equal(one)


def test_the_seed_decides_which_paths_are_dropped(micro):
    """The same weights: only what is dropped may differ."""
    zero, one = (dino.Dino(micro(f"train.seed={seed}"), HERE) for seed in (0, 1))
    one.student.load_state_dict(zero.student.state_dict())
    one.teacher.load_state_dict(zero.teacher.state_dict())
    assert not zero.step(3, crops(0)).loss.equal(one.step(3, crops(0)).loss)


def test_bf16_step_is_close_to_fp32(micro):
    losses = [
        dino.Dino(micro(f"train.precision={p}", "model.drop_path_rate=0.0"), HERE)
        .step(0, crops(0))
        .loss.item()
        for p in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
