"""What a DINOv2 run takes from an earlier one, and from Meta's full checkpoints."""

import logging

import pytest
import torch
from safetensors import torch as safetensors_torch

from pathfm_cli import errors
from pathfm_cli.pretrain import dinov2, folder, networks, origin, place, run, train

HERE = place.Place(0, 1, torch.device("cpu"))
CENTRE, PATCH_CENTRE = torch.arange(64.0), torch.arange(48.0) - 7
OWN_HEADS = ("start.student=own", "start.heads=keep")
EMA = "loss.centring=ema"


@pytest.fixture(scope="module")
def earlier(tissue, micro2, tmp_path_factory):
    """Three steps with a running centre, so that mask token and both centres are not zero."""
    from pathfm_cli.pretrain import book

    settings = micro2(EMA, "train.steps=3", "train.checkpoint_every=3", "optim.warmup_epochs=0")
    path = tmp_path_factory.mktemp("earlier") / "run1"
    header = run.identity(tissue, settings)
    folder.prepare(path, header, settings, overwrite=False)
    train.train(book.Job(tissue, path, header, settings), HERE, lambda: False)
    return path


def saved(path, name):
    newest = folder.checkpoints(path / folder.CHECKPOINTS)[-1]
    return safetensors_torch.load_file(newest / f"{name}.safetensors")


def test_the_mask_token_of_a_run_is_kept_with_fresh_heads(tissue, micro2, earlier):
    token = saved(earlier, "student")["mask_token"]
    assert token.abs().max() > 1e-5
    settings = micro2(f"model.init={earlier}")
    for network in networks.pair(settings):
        assert network.mask_token.equal(token)
    parents = run.identity(tissue, settings).parents
    assert sum(parent.startswith("weights:") for parent in parents) == 2


def test_an_export_alone_has_no_mask_token_and_that_is_said(micro2, earlier, caplog):
    export = earlier / folder.RESULT
    copy = earlier.parent / "export"
    copy.mkdir()
    for name in (folder.RESULT, folder.MODEL):
        (copy / name).write_bytes((earlier / name).read_bytes())
    assert export.is_file()
    with caplog.at_level(logging.INFO, "pathfm.pretrain"):
        student, _ = networks.pair(micro2(f"model.init={copy}"))
    assert not student.mask_token.any()
    assert "mask token: zero, as" in caplog.text


def test_both_centres_of_a_run_are_kept(micro2, earlier):
    found = saved(earlier, "centre")
    changes = (EMA, f"model.init={earlier}", *OWN_HEADS, "start.centre=keep")
    method = dinov2.Dinov2(micro2(*changes), HERE)
    assert found["centre_K"].any() and found["patch.centre_K"].any()
    assert method.centre.centre_K.equal(found["centre_K"])
    assert method.centre.patch.centre_K.equal(found["patch.centre_K"])


def test_moments_of_the_mask_token_are_kept_with_fresh_heads(micro2, earlier):
    changes = (f"model.init={earlier}", "start.student=own", "start.moments=keep")
    method = dinov2.Dinov2(micro2(*changes), HERE)
    moments = saved(earlier, "optimiser")
    state = method.optimiser.state[method.student.mask_token]
    assert moments["exp_avg.mask_token"].any()
    assert state["exp_avg"].equal(moments["exp_avg.mask_token"])
    assert not method.optimiser.state[method.student.head.last_layer.weight_v]


def test_moments_of_resampled_positions_are_refused(micro2, earlier):
    changes = ("start.student=own", "start.moments=keep", "crops.global_size_px=48")
    with pytest.raises(errors.UsageError, match="moments of backbone.pos_embed in") as caught:
        dinov2.Dinov2(micro2(f"model.init={earlier}", *changes), HERE)
    assert caught.value.hint == "--set start.moments=fresh"


def test_a_second_head_that_is_not_wanted_is_told(micro2, earlier, caplog):
    import dataclasses

    settings = dataclasses.replace(micro2(f"model.init={earlier}", *OWN_HEADS), ibot_head=None)
    with caplog.at_level(logging.INFO, "pathfm.pretrain"):
        networks.pair(settings)
    assert "left aside: ibot_head" in caplog.text


def meta_file(micro2, path, *, without=()):
    """A training checkpoint as DINOv2 saves it: both branches, heads, mask tokens, centres."""
    student, _ = networks.pair(micro2("train.seed=6"))
    teacher, _ = networks.pair(micro2("train.seed=5"))
    model = {"dino_loss.center": CENTRE[None], "ibot_patch_loss.center": PATCH_CENTRE[None, None]}
    for branch, network, value in (("student", student, 0.5), ("teacher", teacher, -3.0)):
        state = dict(network.state_dict())
        state["backbone.mask_token"] = torch.full_like(state.pop("mask_token"), value)
        state["backbone.register_tokens"] = state.pop("backbone.reg_token")
        for name, tensor in state.items():
            named = f"dino_{name}" if name.startswith("head.") else name
            model[f"{branch}.{named}"] = tensor
    for name in without:
        del model[name]
    torch.save({"model": model, "iteration": 9}, path)
    return student.state_dict(), teacher.state_dict()


def test_metas_full_checkpoint_gives_heads_centres_and_the_students_mask_token(micro2, tmp_path):
    file = tmp_path / "full.pth"
    states = meta_file(micro2, file)
    changes = (EMA, f"model.init={file}", *OWN_HEADS, "start.centre=keep")
    method = dinov2.Dinov2(micro2(*changes), HERE)
    for network, state in zip((method.student, method.teacher), states, strict=True):
        for name in ("head.last_layer.weight_v", "ibot_head.mlp.0.weight"):
            assert network.state_dict()[name].equal(state[name]), name
        assert network.mask_token.equal(torch.full((1, 24), 0.5))
    assert method.centre.centre_K.equal(CENTRE)
    assert method.centre.patch.centre_K.equal(PATCH_CENTRE)


def test_a_centre_of_patch_tokens_that_is_not_there_is_refused(micro2, tmp_path):
    meta_file(micro2, tmp_path / "a.pth", without=("ibot_patch_loss.center",))
    changes = (EMA, f"model.init={tmp_path / 'a.pth'}", *OWN_HEADS, "start.centre=keep")
    with pytest.raises(errors.InputError, match="a.pth holds no centre of patch tokens"):
        dinov2.Dinov2(micro2(*changes), HERE)


def test_an_anchor_that_cannot_be_one(tissue, micro2, earlier, tmp_path):
    table = micro2(f"loss.gram_anchor={tissue}", "loss.gram=1.0")
    with pytest.raises(errors.UsageError, match="to anchor patches at, is no checkpoint"):
        origin.check(table)
    changes = (f"loss.gram_anchor={earlier}", "loss.gram=1.0", "model.embed_dim=48")
    with pytest.raises(errors.UsageError, match="As an anchor of patches: .* do not fit") as caught:
        networks.anchor(micro2(*changes))
    assert "loss.gram_anchor=" in caught.value.hint
