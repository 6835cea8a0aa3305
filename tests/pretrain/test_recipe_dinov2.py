"""Every number of the DINOv2 presets, spelled out.

Sources: facebookresearch/dinov2, `ssl_default_config.yaml` and `train/vitl14.yaml`; the paper's
sections II-A and IV-C and Table VII. Where they are silent, the recipe's own comment says why.
"""

import dataclasses

import pytest

from pathfm_cli.pretrain import recipe

L14, S16 = "dinov2-vitl14", "ablation-dinov2-vits16"
L14_ARCH, S16_ARCH = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_224.dino"
AUGMENT = {
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
}
CROPS = {
    "global_size_px": 224,
    "global_scale": (0.32, 1.0),
    "local_count": 8,
    "local_scale": (0.05, 0.32),
}
LOSS = {
    "student_temperature": 0.1,
    "teacher_temperature": 0.07,
    "teacher_temperature_start": 0.04,
    "teacher_temperature_epochs": 30,
    "teacher_temperature_ramp": "steps",
    "centring": "sinkhorn",
    "sinkhorn_iterations": 3,
    "freeze_last_layer_epochs": 1,
    "ibot": 1.0,
    "koleo": 0.1,
}
HEAD = {"layers": 3, "hidden": 2048, "norm_last_layer": False}
OPTIM = {"min_lr": 1e-6, "weight_decay": 0.04, "clip_norm": 3.0, "clip_by": "part"}
OPTIM["patch_embed_lr"] = 0.2
DATA = {"mpp": (0.25, 0.5, 1.0, 2.0), "size_px": 256, "min_tissue": 0.4}
MASKS = {"share": 0.5, "ratio": (0.1, 0.5)}
PRESETS = {
    L14: {
        "model": {
            "arch": L14_ARCH,
            "init": L14_ARCH,
            "drop_path_rate": 0.4,
            "drop_path": "uniform",
        },
        "crops": {**CROPS, "local_size_px": 98},
        "head": {**HEAD, "bottleneck": 384, "prototypes": 131072},
        "ibot_head": {**HEAD, "bottleneck": 256, "prototypes": 131072},
        "loss": {**LOSS, "spread_over": "rank"},
        "optim": {
            **OPTIM,
            "base_lr": 2e-5,
            "lr_rule": "sqrt",
            "warmup_epochs": 16.0,
            "weight_decay_end": 0.2,
            "layer_decay": 1.0,
        },
        "ema": {"momentum": 0.994, "momentum_end": 1.0},
    },
    S16: {
        "model": {
            "arch": S16_ARCH,
            "init": "scratch",
            "init_values": 1e-5,
            "drop_path_rate": 0.3,
            "drop_path": "uniform",
        },
        "crops": {**CROPS, "local_size_px": 96},
        "head": {**HEAD, "bottleneck": 256, "prototypes": 65536},
        "ibot_head": None,
        "loss": LOSS,
        "optim": {
            **OPTIM,
            "base_lr": 5e-4,
            "lr_rule": "absolute",
            "warmup_epochs": 10.0,
            "weight_decay_end": 0.4,
            "layer_decay": 0.9,
        },
        "ema": {"momentum": 0.992, "momentum_end": 1.0},
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_of_a_preset_is_that_of_its_source(name):
    settings = recipe.load(name)
    shared = {"data": DATA, "augment": AUGMENT, "masks": MASKS}
    for section, values in {**PRESETS[name], **shared}.items():
        found = getattr(settings, section)
        # What a source does not have (HED, gram anchoring, KDE, ...) stays off, as by default.
        assert found == (values and type(found)(**values)), section
    train = settings.train
    assert (settings.method, train.shard_above, train.precision) == ("dinov2", 500_000_000, "bf16")


def test_the_finish_on_larger_views_changes_only_what_it_says():
    first = recipe.load(L14)
    third = recipe.load(L14, ["model.init=run2"], phase=3)
    assert (third.crops.global_size_px, third.crops.local_size_px) == (392, 168)
    assert third.data == dataclasses.replace(first.data, size_px=448)
    assert third.optim == dataclasses.replace(first.optim, lr_factor=0.25, warmup_epochs=1.0)
    assert (third.train.steps, third.train.device_batch) == (25_000, 8)
    for section in ("augment", "masks", "head", "ibot_head", "ema"):
        assert getattr(third, section) == getattr(first, section)
