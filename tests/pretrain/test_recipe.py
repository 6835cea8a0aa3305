"""Recipes: presets, files, assignments, and the sentences about wrong ones."""

import dataclasses

import pytest

from pathfm_cli import config, errors
from pathfm_cli.pretrain import recipe


def test_the_papers_preset():
    paper = recipe.load("dino-vits16")
    assert paper.peak_lr == pytest.approx(2.0e-4)
    assert paper.warmup_steps == 12_500
    assert paper.train.steps == 100 * 1_280_000 // 1024
    assert paper.data.mpp == (0.25, 0.5, 1.0, 2.0)
    assert (paper.data.size_px, paper.data.min_tissue) == (256, 0.4)
    assert paper.head.prototypes == 65_536
    assert paper.model.init == "vit_small_patch16_224.dino"


L14 = "vit_large_patch14_reg4_dinov2.lvd142m"
PAPER = {
    # facts of Tables I and VII and section IV-C: batch, steps an epoch, steps, peak lr of phase 1
    "dino-vits16": ("vit_small_patch16_224.dino", 4 * 256, 1250, 125_000, 2.0e-4),
    "dino-vits8": ("vit_small_patch8_224.dino", 4 * 64, 5000, 500_000, 5.0e-5),
    "dino-vitb16": ("vit_base_patch16_224.dino", 4 * 128, 2500, 250_000, 1.5e-4),
    "dino-vitb8": ("vit_base_patch8_224.dino", 8 * 32, 5000, 500_000, 5.0e-5),
    "dinov2-vitl14": (L14, 16 * 32, 2500, 250_000, 1.414e-5),
    "ablation-dinov2-vits16": ("vit_small_patch16_224.dino", 256, 5000, 500_000, 5.0e-4),
    "ablation-dino-vits16": ("vit_small_patch16_224.dino", 256, 5000, 500_000, 5.0e-4),
}


@pytest.mark.parametrize("name", PAPER)
def test_batch_length_and_rate_of_the_papers_presets(name):
    arch, batch, per_epoch, steps, peak = PAPER[name]
    settings = recipe.load(name)
    assert settings.model.arch == arch
    assert settings.model.init == ("scratch" if name.startswith("ablation") else arch)
    train = settings.train
    assert (train.batch_size, train.steps_per_epoch, train.steps) == (batch, per_epoch, steps)
    assert settings.peak_lr == pytest.approx(peak, rel=1e-3)
    assert (settings.crops.local_count, settings.phase) == (8, 1)


# What all five have in common. Paper IV-C (iii) and (iv) for the data; facebookresearch/dino,
# main_dino.py (its argument parser, DataAugmentationDINO, DINOHead, DINOLoss) for the rest.
COMMON = {
    "data": {"mpp": (0.25, 0.5, 1.0, 2.0), "size_px": 256, "min_tissue": 0.4},
    "crops": {
        "global_size_px": 224,
        "global_scale": (0.4, 1.0),
        "local_count": 8,
        "local_size_px": 96,
        "local_scale": (0.05, 0.4),
    },
    "augment": {
        "horizontal_flip": 0.5,
        "vertical_flip": 0.0,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grey": 0.2,
        "blur_first": 1.0,
        "blur_second": 0.1,
        "blur_local": 0.5,
        "blur_sigma_px": (0.1, 2.0),
        "solarise_second": 0.2,
    },
    "head": {
        "layers": 3,
        "hidden": 2048,
        "bottleneck": 256,
        "prototypes": 65536,
        "norm_last_layer": True,
    },
    "ema": {"momentum": 0.996, "momentum_end": 1.0},
}
LOSS = (
    *("student_temperature", "teacher_temperature_start", "teacher_temperature"),
    *("teacher_temperature_epochs", "centre_momentum", "freeze_last_layer_epochs"),
)
OPTIM = (
    *("base_lr", "lr_rule", "min_lr", "warmup_epochs"),
    *("weight_decay", "weight_decay_end", "clip_norm"),
)
# Small models: the defaults of main_dino.py. Base models: the arguments released with DINO's own
# ViT-B/16 and ViT-B/8. Paper IV-C (ii): the rate over 10; Table VII: the ablation's is absolute.
OWN = {
    "dino-vits16": (
        (0.1, 0.04, 0.04, 0, 0.9, 1),
        (5e-5, "linear", 1e-6, 10.0, 0.04, 0.4, 3.0),
    ),
    "dino-vits8": (
        (0.1, 0.04, 0.04, 0, 0.9, 1),
        (5e-5, "linear", 1e-6, 10.0, 0.04, 0.4, 3.0),
    ),
    "dino-vitb16": (
        (0.1, 0.04, 0.07, 50, 0.9, 3),
        (7.5e-5, "linear", 2e-6, 10.0, 0.04, 0.4, 0.3),
    ),
    "dino-vitb8": (
        (0.1, 0.03, 0.07, 50, 0.9, 3),
        (5e-5, "linear", 2e-6, 10.0, 0.04, 0.4, 3.0),
    ),
    "ablation-dino-vits16": (
        (0.1, 0.04, 0.04, 0, 0.9, 1),
        (5e-4, "absolute", 1e-6, 10.0, 0.04, 0.4, 3.0),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_every_number_of_the_papers_presets_is_that_of_its_source(name):
    loss, optim = OWN[name]
    expected = {
        **COMMON,
        "loss": dict(zip(LOSS, loss, strict=True)),
        "optim": dict(zip(OPTIM, optim, strict=True)),
    }
    settings = recipe.load(name)
    for section, values in expected.items():
        found = getattr(settings, section)
        # What a source does not have (KoLeo, HED, quarter turns, ...) stays off, as by default.
        assert found == type(found)(**values), section
    assert settings.model.drop_path_rate == 0.1


@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("ablation")])
def test_the_second_phase_changes_only_what_it_says(name):
    first = recipe.load(name)
    second = recipe.load(name, ["model.init=run1"], phase=2)
    still = {"teacher_temperature_epochs": 0}
    if name == "dinov2-vitl14":
        still = {"teacher_temperature_start": 0.07}  # where its ramp of 30 epochs ended
    assert second.loss == dataclasses.replace(first.loss, freeze_last_layer_epochs=0, **still)
    assert second.optim == dataclasses.replace(first.optim, lr_factor=0.5)
    for section in COMMON:
        assert getattr(second, section) == getattr(first, section)


@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("ablation")])
def test_the_second_phase_halves_the_peak_and_goes_on(name):
    first = recipe.load(name)
    second = recipe.load(name, ["model.init=run1"], phase=2)
    assert second.peak_lr == pytest.approx(PAPER[name][-1] / 2, rel=1e-3)
    assert (second.phase, second.model.init, second.start.heads) == (2, "run1", "keep")
    assert (first.phase, first.start.heads, second.train) == (1, "fresh", first.train)
    again = recipe.load(name, ["model.init=run1", "optim.base_lr=1e-3"], phase=2)
    assert again.peak_lr == pytest.approx(first.peak_lr / first.optim.base_lr * 1e-3 / 2)


def test_a_smaller_batch_sees_as_many_patches():
    smaller = recipe.load("dino-vits16", ["train.batch_size=256"])
    assert (smaller.train.steps, smaller.train.steps_per_epoch) == (500_000, 5_000)
    assert smaller.peak_lr == pytest.approx(5e-5)
    shorter = recipe.load("dino-vits16", ["length.epochs=20"])
    assert (shorter.train.steps, shorter.train.steps_per_epoch) == (25_000, 1_250)
    exact = recipe.load("dino-vits16", ["train.steps=60000", "train.batch_size=256"])
    assert (exact.train.steps, exact.train.steps_per_epoch) == (60_000, 5_000)


@pytest.mark.parametrize(
    ("rule", "peak", "words"),
    [
        ("linear", 0.002, "base 0.001 x batch 512 / 256"),
        ("sqrt", 0.001 / 2**0.5, "base 0.001 x sqrt(batch 512 / 1024)"),
        ("absolute", 0.001, "base 0.001"),
    ],
)
def test_rules_of_the_learning_rate(rule, peak, words):
    changes = ["train.batch_size=512", "optim.base_lr=1e-3", f"optim.lr_rule={rule}"]
    settings = recipe.load("tiny", changes)
    assert settings.peak_lr == pytest.approx(peak)
    assert settings.peak_lr_words == f"peak lr {peak:g} = {words}"


@pytest.mark.parametrize("name", PAPER)
def test_every_number_of_the_papers_presets_names_its_source(name):
    text = recipe._text(name)
    table = ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line
        elif "=" in line.partition("#")[0] and not line.startswith("name"):
            words = ("dino:", "dinov2:", "paper ", "ours", "released:")
            assert any(word in line for word in words) or "dino" in table, line


@pytest.mark.parametrize("name", recipe.presets())
def test_presets_survive_their_own_toml(name, tmp_path):
    settings = recipe.load(name)
    assert settings.name == name
    file = tmp_path / "config.toml"
    file.write_text(config.dumps(settings))
    assert recipe.load(str(file)) == settings


def test_assignments_change_one_value():
    changed = recipe.load("tiny", ["train.steps=7", "optim.warmup_epochs=0", "model.depth=2"])
    assert changed.train.steps == 7 and changed.model.depth == 2
    plain = recipe.load("tiny")
    assert dataclasses.replace(changed, train=plain.train, model=plain.model).crops == plain.crops


@pytest.mark.parametrize(
    ("name", "assignment", "message", "hint"),
    [
        ("tinny", [], "no recipe 'tinny'", "did you mean tiny?"),
        (
            "gone.toml",
            [],
            "no recipe file gone.toml",
            "presets: ablation-dino-vits16, ablation-dinov2-vits16",
        ),
        ("tiny", ["train.stepps=3"], "Unknown setting train.stepps", "did you mean train.steps?"),
        ("tiny", ["train.steps=many"], "train.steps is 'many'", ""),
        ("tiny", ["train.steps=0"], "train.steps is 0", "1 or more"),
        ("tiny", ["train.steps=10"], "warmup", "--set optim.warmup_epochs=0"),
        ("tiny", ["crops.global_scale=[0.9, 0.4]"], "crops.global_scale", "low <= high"),
        ("tiny", ["augment.hue=0.7"], "augment.hue is 0.7", "0 to 0.5"),
        ("tiny", ["loss.student_temperature=0.0"], "student_temperature", "above 0"),
        ("tiny", ["ema.momentum=1.5"], "ema.momentum is 1.5", "0 to 1"),
        ("tiny", ["train.precision=fp16"], "train.precision is 'fp16'", "auto, fp32, bf16"),
        ("tiny", ["model.drop_path_rate=1.0"], "drop_path_rate is 1.0", "not including, 1"),
        ("tiny", ["optim.lr_rule=cubic"], "optim.lr_rule is 'cubic'", "linear, sqrt, absolute"),
        ("tiny", ["optim.layer_decay=1.5"], "optim.layer_decay is 1.5", "up to 1"),
        ("tiny", ["start.moments=keep"], "start.moments is 'keep'", "--set start.student=own"),
        ("tiny", ["start.centre=keep"], "start.centre is 'keep'", "--set start.heads=keep"),
        ("tiny", ["crops.context_scale=[1.0, 1.5]"], "less than the 120 px", "data.size_px=120"),
        ("tiny", ["augment.blur_chance=none"], "blur_chance is 'none'", "of-blur, of-none"),
        ("dino-vits16", ["length.epochs=0"], "length.epochs is 0", "above 0"),
        ("dino-vits16", ["length.epcohs=9"], "Unknown setting length.epcohs", "length.epochs"),
        ("dino-vits16", ["length.epochs=inf"], "length.epochs is inf", "a finite number"),
        ("tiny", ["optim.base_lr=inf"], "optim.base_lr is inf", "a finite number"),
        ("tiny", ["augment.jitter=nan"], "augment.jitter is nan", "a finite number"),
        ("tiny", ["augment.blur_sigma_px=[0.1, 1e9]"], "blur_sigma_px is", "high <= 100"),
        ("tiny", [f"train.steps={2**63}"], "train.steps is 9223372036854775808", "at most"),
        ("tiny", ['model.init=""'], "model.init is empty", "scratch"),
        ("tiny", ["model.patch_size=0"], "model.patch_size is 0", "1 to 1024"),
        ("tiny", ["model.num_heads=0"], "model.num_heads is 0", "1 to 1024"),
        ("tiny", ["model.embed_dim=-4"], "model.embed_dim is -4", "1 to 65536"),
        ("tiny", ["model.depth=-1"], "model.depth is -1", "1 to 1024"),
        ("tiny", ["head.hidden=1000000000000"], "head.hidden is 1000000000000", "1 to 131072"),
        ("tiny", ["head.layers=100000000"], "head.layers is 100000000", "1 to 64"),
        ("tiny", ["loss.koleo=inf"], "loss.koleo is inf", "a finite number"),
        ("tiny", ["loss.teacher_temperature_epochs=-5"], "epochs is -5", "0 or more"),
        ("tiny", ["loss.freeze_last_layer_epochs=-5"], "epochs is -5", "0 or more"),
        ("dino-vits16", ["train.batch_size=3.5"], "train.batch_size is 3.5", "train.batch_size=1"),
    ],
)
def test_wrong_recipes_are_usage_errors(name, assignment, message, hint):
    with pytest.raises(errors.UsageError) as caught:
        recipe.load(name, assignment)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "phase", "message", "hint"),
    [
        ("tiny", 2, "tiny has no phase 2", "leave --phase out"),
        ("dino-vits16", 3, "no phase 3", "--phase 2"),
        ("dino-vits16", 2, "goes on from the run of the one before", "--phase 2 --init run1/"),
    ],
)
def test_wrong_phases_are_usage_errors(name, phase, message, hint):
    with pytest.raises(errors.UsageError, match=message) as caught:
        recipe.load(name, [], phase)
    assert hint in caught.value.hint


@pytest.mark.parametrize("lr", [5e-4, 1e-3, 2e-3])
@pytest.mark.parametrize("decay", [0.9, 1.0])
def test_the_grid_of_table_vii(lr, decay):
    """Rates as they are; one head for class and patch tokens."""
    changes = [f"optim.base_lr={lr}", f"optim.layer_decay={decay}"]
    settings = recipe.load("ablation-dinov2-vits16", changes)
    assert settings.peak_lr == lr and settings.ibot_head is None
    assert settings.optim.layer_decay == decay
    other = recipe.load("ablation-dino-vits16")
    assert (settings.data, settings.augment) == (other.data, other.augment)
    assert settings.train == other.train


def test_the_large_dinov2_and_its_finish_on_larger_views():
    first = recipe.load("dinov2-vitl14")
    assert (first.head.prototypes, first.ibot_head.prototypes) == (131_072, 131_072)
    assert (first.head.bottleneck, first.ibot_head.bottleneck) == (384, 256)
    assert (first.crops.local_size_px, first.loss.spread_over) == (98, "rank")
    last = recipe.load("dinov2-vitl14", ["model.init=run2"], phase=3)
    assert (last.phase, last.crops.global_size_px, last.train.steps) == (3, 392, 25_000)
    assert last.peak_lr == pytest.approx(first.peak_lr / 4)
    with pytest.raises(errors.UsageError, match="third phase goes on") as caught:
        recipe.load("dinov2-vitl14", [], phase=3)
    assert caught.value.hint == "--phase 3 --init run2/"
