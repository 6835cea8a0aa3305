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


def test_every_number_of_the_papers_preset_names_its_source():
    text = recipe._text("dino-vits16")
    table = ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line
        elif "=" in line.partition("#")[0] and not line.startswith("name"):
            sourced = any(word in line for word in ("dino:", "paper ", "ours")) or "dino" in table
            assert sourced, line


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
        ("gone.toml", [], "no recipe file gone.toml", "presets: dino-vits16, tiny"),
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
    ],
)
def test_wrong_recipes_are_usage_errors(name, assignment, message, hint):
    with pytest.raises(errors.UsageError) as caught:
        recipe.load(name, assignment)
    assert message in str(caught.value)
    assert hint in caught.value.hint
