import dataclasses
from typing import Literal

import pytest

from pathfm_cli import config, errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float
    rule: Literal["linear", "sqrt"] = "linear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    optim: Optim
    mpp: tuple[float, ...] = (0.5,)
    name: str = "a"
    fused: bool = False
    steps: int | None = None


def test_toml_becomes_frozen_dataclasses() -> None:
    tree = config.loads("mpp = [0.25, 1]\n[optim]\nlr = 1", "x.toml")
    recipe = config.build(Recipe, tree)
    assert recipe == Recipe(optim=Optim(lr=1.0), mpp=(0.25, 1.0))
    assert type(recipe.optim.lr) is float


def test_set_reads_toml_values_and_leaves_the_tree_alone() -> None:
    tree = {"optim": {"lr": 1.0}}
    changed = config.overlay(tree, ["optim.lr=5e-4", "name=dino b", "fused=true", "mpp=[1, 2.0]"])
    assert changed == {"optim": {"lr": 5e-4}, "name": "dino b", "fused": True, "mpp": [1, 2.0]}
    assert tree == {"optim": {"lr": 1.0}}


def test_dumps_reads_back_equal() -> None:
    recipe = Recipe(optim=Optim(lr=5e-4), name='quote " and \\ and\nline', mpp=(0.25, 2.0))
    assert config.build(Recipe, config.loads(config.dumps(recipe), "x")) == recipe


@pytest.mark.parametrize(
    ("assignments", "message", "hint"),
    [
        (["optim.lrr=1"], "Unknown setting optim.lrr.", "did you mean optim.lr?"),
        (["optim.lr=fast"], "Setting optim.lr is 'fast', not of type float.", "--set optim.lr=0.5"),
        (["optim.rule=cubic"], "Setting optim.rule is 'cubic'.", "one of: linear, sqrt"),
        (["mpp=1"], "Setting mpp is a list, not 1.", "--set mpp='[...]'"),
        (["optim=1"], "Setting optim is a table, not 1.", "--set optim.NAME="),
        (["fused=1"], "Setting fused is 1, not of type bool.", "--set fused=true"),
        (["optim.lr.x=1"], "--set optim.lr.x: lr is a value, not a table.", ""),
        (["lr"], "--set 'lr' is not of the form a.b=value.", "--set train.steps=100"),
    ],
)
def test_wrong_settings_name_themselves(assignments: list[str], message: str, hint: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        config.build(Recipe, config.overlay({"optim": {"lr": 1.0}}, assignments))
    assert str(caught.value) == message
    assert hint in caught.value.hint


def test_missing_setting_is_named() -> None:
    with pytest.raises(errors.UsageError, match=r"Setting optim\.lr is required"):
        config.build(Recipe, {"optim": {}})


def test_broken_toml_names_its_file() -> None:
    with pytest.raises(errors.UsageError, match=r"^r\.toml is not valid TOML"):
        config.loads("a = ", "r.toml")


def test_the_last_word_of_a_setting_finds_it() -> None:
    @dataclasses.dataclass(frozen=True)
    class Rates:
        base_lr: float = 1.0
        min_lr: float = 0.0
        clip: float = 0.0

    with pytest.raises(errors.UsageError) as caught:
        config.build(Rates, {"lr": 1.0})
    assert caught.value.hint == "did you mean base_lr or min_lr?"


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e6"])
def test_seconds_of_the_environment_are_a_number_above_0(text, monkeypatch):
    monkeypatch.delenv("PATHFM_WAIT_S", raising=False)
    assert config.seconds("PATHFM_WAIT_S", 30) == 30
    monkeypatch.setenv("PATHFM_WAIT_S", "2.5")
    assert config.seconds("PATHFM_WAIT_S", 30) == 2.5
    monkeypatch.setenv("PATHFM_WAIT_S", text)
    with pytest.raises(errors.UsageError, match=f"PATHFM_WAIT_S={text} is no number") as told:
        config.seconds("PATHFM_WAIT_S", 30)
    assert told.value.hint == "PATHFM_WAIT_S=600"
