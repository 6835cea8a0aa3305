"""A step of DINOv2 against its training loop, written out plainly; what each option changes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from pathfm_cli import errors
from pathfm_cli.pretrain import dinov2, masks, networks, place

HERE = place.Place(0, 1, torch.device("cpu"))
PLAIN = ("model.drop_path_rate=0.0", "train.steps=20", "loss.freeze_last_layer_epochs=1")


def crops(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(8, 3, s, s, generator=generator) for s in (32, 16)]


def hidden(settings, step):
    """(8, 16) bool: patch tokens of both global views of four patches."""
    indices = [4 * step + number for number in range(4)]
    found = masks.masks(settings.masks, settings.train.seed, indices, 4, (4, 4))
    return torch.from_numpy(found.masked_IN)


def features(network, images, masked=None):
    """timm's own forward, with a hook that puts the mask token in."""

    def hide(module, inputs, output):
        shape = output.shape
        flat = output.reshape(len(images), -1, shape[-1])
        return torch.where(masked[..., None], network.mask_token, flat).reshape(shape)

    hook = network.backbone.patch_embed.register_forward_hook(hide) if masked is not None else None
    tokens = network.backbone.forward_features(images)
    if hook is not None:
        hook.remove()
    return tokens[:, 0], tokens[:, 2:]  # One register lies between.


def sinkhorn(logits, temperature):
    """`sinkhorn_knopp_teacher`, in float64."""
    q = torch.exp((logits.double() - logits.max()) / temperature).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T.float()


def spread(embeddings):
    total = 0.0
    for view in functional.normalize(embeddings, dim=-1).chunk(2):
        for number, own in enumerate(view):
            others = [other for place_, other in enumerate(view) if place_ != number]
            total = total - torch.log(min((own - other).norm() for other in others)) / len(view)
    return total


def rate(name):
    """Factor of the learning rate with two blocks, a decay of 0.9 and 0.2 for the pixels."""
    if name.startswith("backbone.blocks."):
        return 0.9 ** (2 - int(name.split(".")[2]))
    if "norm" in name or "head." in name:
        return 1.0
    return 0.9**3 * (0.2 if "patch_embed" in name else 1.0)


def reference(settings, steps, centring):
    """`ssl_meta_arch` and `train.py`, batch 4, 2 + 2 views; returns all it changes."""
    student, teacher = networks.pair(settings)
    named = list(student.named_parameters())
    groups = [{"params": [p], "name": n} for n, p in named]
    optimiser = torch.optim.AdamW(groups, fused=False)
    patch_head = "head" if settings.ibot_head is None else "ibot_head"
    centres = [torch.zeros(64), torch.zeros(getattr(settings, patch_head).prototypes)]
    losses = []
    for step in range(steps):
        peak = 4e-3 * math.sqrt(4 / 1024)
        lr = 1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * (step - 3) / 17))
        lr = peak * step / 2 if step < 3 else lr
        phase = 1 + math.cos(math.pi * step / 20)
        momentum = 1.0 + 0.5 * (0.992 - 1.0) * phase
        temperature = 0.04 + 0.03 * min(step / 8, 1)
        big, small = crops(step)
        masked = hidden(settings, step)
        with torch.no_grad():
            seen, patches = features(teacher, big)
            class_logits = teacher.head(seen)
            patch_logits = getattr(teacher, patch_head)(patches[masked])
            if centring == "sinkhorn":
                targets = [sinkhorn(x, temperature) for x in (class_logits, patch_logits)]
            else:
                both = zip((class_logits, patch_logits), centres, strict=True)
                targets = [functional.softmax((x - c) / temperature, dim=-1) for x, c in both]
                means = [x.mean(dim=0) for x in (class_logits, patch_logits)]
                centres = [0.9 * c + 0.1 * m for c, m in zip(centres, means, strict=True)]
        global_class, global_patches = features(student, big, masked)
        local_class, _ = features(student, small)
        views = [
            functional.log_softmax(student.head(view) / 0.1, dim=-1)
            for view in (*global_class.chunk(2), *local_class.chunk(2))
        ]
        pairs = [
            -(q * views[v]).sum(dim=-1).mean()
            for g, q in enumerate(targets[0].chunk(2))
            for v in range(4)
            if v != g
        ]
        dino_loss = sum(pairs) / 6
        log_p = functional.log_softmax(
            getattr(student, patch_head)(global_patches[masked]) / 0.1, dim=-1
        )
        each = -(targets[1] * log_p).sum(dim=-1)
        of_image = masked.nonzero()[:, 0]
        ibot_loss = sum(each[of_image == i].mean() for i in set(of_image.tolist())) / 8
        total = dino_loss + ibot_loss + 0.1 * spread(global_class)
        optimiser.zero_grad()
        total.backward()
        for part in ({"backbone", "mask_token"}, {"head"}, {"ibot_head"}):
            own = [p for n, p in named if n.partition(".")[0] in part]
            if own:
                torch.nn.utils.clip_grad_norm_(own, 3.0)
        for group in optimiser.param_groups:
            name, (parameter,) = group["name"], group["params"]
            group["lr"] = lr * rate(name)
            plain = name.endswith(".bias") or parameter.ndim == 1
            group["weight_decay"] = 0.0 if plain else 0.4 + 0.5 * (0.04 - 0.4) * phase
            if "last_layer" in name and step < 3:
                parameter.grad = None
        optimiser.step()
        with torch.no_grad():
            for q, k in zip(student.parameters(), teacher.parameters(), strict=True):
                k.mul_(momentum).add_((1 - momentum) * q)
        losses.append([x.item() for x in (dino_loss, ibot_loss)])
    return losses, student, teacher, centres


@pytest.fixture
def one_thread():
    """Fresh embeddings are .01 apart: with sums in another order KoLeo's nearest may be another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
@pytest.mark.parametrize("heads", ["two", "one"])
def test_eight_steps_equal_the_reference_loop(micro2, heads, centring):
    settings = micro2(*PLAIN, f"loss.centring={centring}")
    if heads == "one":
        settings = one_head(settings)
    losses, student, teacher, centres = reference(settings, 8, centring)
    method = dinov2.Dinov2(settings, HERE)
    ours = []
    for step in range(8):
        outcome = method.step(step, crops(step))
        ours.append([outcome.loss.item(), outcome.terms["ibot"].item()])
    assert torch.tensor(ours) == pytest.approx(torch.tensor(losses), rel=2e-5)
    assert len({round(both[1], 3) for both in losses}) > 4, "the losses must move"
    first = networks.pair(settings)[0].state_dict()
    for mine, theirs in ((method.student, student), (method.teacher, teacher)):
        assert set(mine.state_dict()) == set(theirs.state_dict())
        for name, expected in theirs.state_dict().items():
            if name.endswith("qkv.bias"):  # keys' biases have no true gradient, only rounding
                continue
            # Of how far it went. Adam blows rounding up where an element's gradient is nearly zero.
            moved, apart = expected - first[name], mine.state_dict()[name] - expected
            assert apart.norm() <= 0.02 * moved.norm() + 1e-7, (name, apart.norm(), moved.norm())
    assert student.mask_token.abs().max() > 1e-5, "the mask token must learn"
    if centring == "ema":
        found = [method.centre.centre_K, method.centre.patch.centre_K]
        torch.testing.assert_close(found, centres, atol=1e-5, rtol=1e-3)


def one_head(settings):
    return dataclasses.replace(settings, ibot_head=None)


def in_parts(crops_, count):
    views = [images.unflatten(0, (2, -1)) for images in crops_]
    size = views[0].shape[1] // count
    for start in range(0, size * count, size):
        yield [images[:, start : start + size].flatten(0, 1) for images in views]


def test_a_batch_in_parts_trains_as_a_whole_one(micro2):
    """Masks and both centres included, where nothing compares images with each other."""
    changes = ("loss.centring=ema", "loss.koleo=0.0", "loss.freeze_last_layer_epochs=0")
    whole, parted = (dinov2.Dinov2(micro2(*changes), HERE) for _ in range(2))
    for step in range(4):
        one = whole.step(step, crops(step))
        two = parted.step_in_parts(step, in_parts(crops(step), 2), 2)
        assert two.loss.item() == pytest.approx(one.loss.item(), rel=1e-6)
        assert two.terms["ibot"].item() == pytest.approx(one.terms["ibot"].item(), rel=1e-5)
        assert two.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-4)
    for name, expected in whole.centre.state_dict().items():
        found = parted.centre.state_dict()[name]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_kde_in_the_place_of_koleo(micro2):
    method = dinov2.Dinov2(micro2("loss.koleo=0.0", "loss.kde=0.05"), HERE)
    outcome = method.step(0, crops(0))
    assert set(outcome.terms) == {"ibot", "kde"} and outcome.terms["kde"] < 0


def test_kde_is_of_the_kernel_that_the_recipe_names(micro2):
    settings = micro2("loss.koleo=0.0", "loss.kde=0.05", "loss.kde_concentration=2.0")
    x_GBD = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    found = dinov2.Dinov2(settings, HERE)._spread(x_GBD)["kde"].item()
    expected = 0.0
    for x_BD in x_GBD.double().numpy():
        unit_BD = x_BD / np.linalg.norm(x_BD, axis=1, keepdims=True)
        expected += np.log(np.exp(2.0 * (unit_BD @ unit_BD.T - 1)).mean(axis=1)).mean()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("iterations", [1, 2])
def test_targets_are_balanced_as_often_as_the_recipe_says(micro2, iterations):
    method = dinov2.Dinov2(micro2(f"loss.sinkhorn_iterations={iterations}"), HERE)
    logits_NK = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    found_NK = method._targets(logits_NK, 0.1, None)(slice(None)).numpy()
    expected_NK = np.exp(logits_NK.double().numpy() / 0.1)
    for _ in range(iterations):
        expected_NK /= expected_NK.sum(axis=0)
        expected_NK /= expected_NK.sum(axis=1, keepdims=True)
    assert found_NK == pytest.approx(expected_NK, abs=1e-6)


def test_every_size_of_view_drops_its_own_paths(micro2):
    student, _ = networks.pair(micro2())
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(4, 3, side, side, generator=generator) for side in (32, 16)]
    kept = np.random.default_rng(0).random((2, student.branches.rates_L.size, 4)) > 0.5
    assert (kept[0] != kept[1]).any()
    with torch.no_grad():
        both = student(views, list(kept)).logits_NK
        each = [student([x], [k]).logits_NK for x, k in zip(views, kept, strict=True)]
    torch.testing.assert_close(both, torch.cat(each))
    assert not both[4:].allclose(student(views, [kept[0]] * 2).logits_NK[4:])


def test_without_a_patch_objective_there_is_no_mask_token(micro2):
    settings = one_head(micro2())
    settings = dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, ibot=0.0))
    method = dinov2.Dinov2(settings, HERE)
    outcome = method.step(0, crops(0))
    assert set(outcome.terms) == {"koleo"}
    assert "mask_token" not in method.student.state_dict()


def test_drop_path_is_uniform_or_linear(micro2):
    uniform, linear = (
        networks.pair(micro2(f"model.drop_path={name}"))[0] for name in ("uniform", "linear")
    )
    assert uniform.branches.rates_L.tolist() == [0.3] * 4
    assert linear.branches.rates_L.tolist() == pytest.approx([0.3] * 2)


def test_bf16_step_is_close_to_fp32(micro2):
    plain = ("model.drop_path_rate=0.0",)
    steps = [
        dinov2.Dinov2(micro2(f"train.precision={p}", *plain), HERE).step(0, crops(0))
        for p in ("fp32", "bf16")
    ]
    for name in ("ibot", "koleo"):
        exact, short = (step.terms[name].item() for step in steps)
        assert short != exact and short == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss.gram=1.0", "loss.gram_anchor is ''"),
        ("start.centre=keep", "belongs to the heads"),
        ("loss.ibot=0.0", "ibot_head is there, but loss.ibot is 0"),
        ("model.global_pool=avg", "trains the class token"),
        ("method=dino", "loss.ibot is 1.0, but method is dino"),
        ("masks.share=1.5", "masks.share is 1.5"),
        ("masks.ratio=[0.0,0.0]", "masks.ratio 0.0 hides nothing"),
        ("masks.share=0.0", "masks.share 0.0 of masks.ratio 0.5 hides nothing"),
        ("model.reg_tokens=-1", "model.reg_tokens is -1"),
        ("model.reg_tokens=1025", "model.reg_tokens is 1025"),
        ("loss.sinkhorn_iterations=101", "loss.sinkhorn_iterations is 101"),
        ("loss.kde_concentration=1e308", "loss.kde_concentration is 1e"),
    ],
)
def test_settings_that_do_not_go_together(micro2, change, message):
    with pytest.raises(errors.UsageError, match=message):
        micro2(change)


def test_dinov2_without_anything_of_its_own_is_refused(micro2):
    settings = one_head(micro2("loss.centring=ema"))
    with pytest.raises(errors.UsageError, match="all that it adds to dino is off"):
        dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, ibot=0.0))


def test_an_encoder_without_tokens_is_refused(micro2):
    settings = micro2("model.arch=resnet18", "model.init=scratch")
    none = {n: None for n in ("patch_size", "embed_dim", "depth", "num_heads", "reg_tokens")}
    model = dataclasses.replace(settings.model, init_values=None, drop_path_rate=0.0, **none)
    with pytest.raises(errors.UsageError, match="no class and patch tokens"):
        networks.pair(dataclasses.replace(settings, model=model))
