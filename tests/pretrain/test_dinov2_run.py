"""Whole DINOv2 runs: resume to the byte, what they leave, what they may start from."""

import json
import shutil

import pytest
import torch
from safetensors import torch as safetensors_torch

from pathfm_cli import errors
from pathfm_cli.model import vit
from pathfm_cli.pretrain import book, dinov2, folder, networks, place, run, train
from pathfm_cli.pretrain.losses import gram

HERE = place.Place(0, 1, torch.device("cpu"))
SHORT = ("train.steps=6", "train.checkpoint_every=3")
TIMINGS = ("images_per_s", "stall")


def begin(tissue, path, settings):
    header = run.identity(tissue, settings)
    folder.prepare(path, header, settings, overwrite=False)
    return book.Job(tissue, path, header, settings)


def stop_after(calls):
    count = iter(range(1, 10_000))
    return lambda: next(count) >= calls


def lines(path):
    rows = [json.loads(line) for line in (path / folder.METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


@pytest.fixture(scope="module")
def settings(micro2):
    return micro2(*SHORT)


@pytest.fixture(scope="module")
def reference(tissue, settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    train.train(begin(tissue, path, settings), HERE, lambda: False)
    return path


@pytest.mark.parametrize("changes", [(), ("loss.centring=ema",)], ids=["sinkhorn", "ema"])
def test_stopped_and_resumed_equals_uninterrupted(tissue, micro2, reference, tmp_path, changes):
    settings = micro2(*SHORT, *changes)
    if changes:
        reference = tmp_path / "whole"
        train.train(begin(tissue, reference, settings), HERE, lambda: False)
    job = begin(tissue, tmp_path / "run", settings)
    with pytest.raises(errors.Interrupted, match="after step 4 of 6"):
        train.train(job, HERE, stop_after(4))
    torch.manual_seed(12345)
    train.train(job, HERE, lambda: False)
    for name in ("student", "teacher", "optimiser", "centre", "guard"):
        file = f"{folder.CHECKPOINTS}/step-000006/{name}.safetensors"
        assert (reference / file).read_bytes() == (job.run / file).read_bytes(), name
    assert (reference / folder.RESULT).read_bytes() == (job.run / folder.RESULT).read_bytes()
    assert lines(reference) == lines(job.run)


def test_metrics_name_every_term(reference):
    for line in lines(reference):
        assert {"loss", "loss_ibot", "loss_koleo", "kl"} < set(line)
        assert line["loss_ibot"] > 0


def test_the_export_is_plain_timm(reference):
    info = json.loads((reference / folder.MODEL).read_text())
    module = vit.timm.create_model(info["arch"], num_classes=0, **info["kwargs"])
    module.load_state_dict(safetensors_torch.load_file(reference / folder.RESULT), strict=True)
    assert info["prefix_tokens"] == 2
    newest = folder.checkpoints(reference / folder.CHECKPOINTS)[-1]
    student = safetensors_torch.load_file(newest / "student.safetensors")
    assert student["mask_token"].shape == (1, 24)


KEEP = ("start.student=own", "start.heads=keep", "start.moments=keep")


def test_a_second_run_keeps_both_heads_and_the_mask_token(micro2, reference):
    method = dinov2.Dinov2(micro2(f"model.init={reference}", *KEEP), HERE)
    newest = folder.checkpoints(reference / folder.CHECKPOINTS)[-1]
    for name in ("student", "teacher"):
        saved = safetensors_torch.load_file(newest / f"{name}.safetensors")
        found = getattr(method, name).state_dict()
        same = {key for key, tensor in saved.items() if found[key].equal(tensor)}
        own = {"mask_token"} if name == "teacher" else set()
        assert set(saved) - same <= own, "the teacher takes the student's mask token"
    token = method.student.mask_token
    moments = safetensors_torch.load_file(newest / "optimiser.safetensors")
    assert method.optimiser.state[token]["exp_avg"].equal(moments["exp_avg.mask_token"])


def test_larger_views_resample_the_positions(micro2, reference):
    larger = micro2(f"model.init={reference}", "crops.global_size_px=48", *KEEP[:2])
    student, _ = networks.pair(larger)
    assert student.backbone.pos_embed.shape == (1, 2 + 36, 24)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(8, 3, side, side, generator=generator) for side in (48, 16)]
    outcome = dinov2.Dinov2(larger, HERE).step(0, views)
    assert torch.isfinite(outcome.loss) and outcome.terms["ibot"] > 0


def test_gram_anchoring_compares_with_an_earlier_encoder(tissue, micro2, reference):
    changes = (f"loss.gram_anchor={reference}", "loss.gram=2.0", "model.drop_path_rate=0.0")
    settings = micro2(*changes)
    parents = run.identity(tissue, settings).parents
    assert sum(parent.startswith("weights:") for parent in parents) == 1
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(8, 3, side, side, generator=generator) for side in (32, 16)]
    method = dinov2.Dinov2(settings, HERE)
    masked = torch.from_numpy(method._masks(0, 4, 0, 1).masked_IN)
    with torch.no_grad():
        seen = method.student(views[:1], masked_XT=masked).patches_XTD
        _, anchor = networks.pair(micro2(f"model.init={reference}"))
        held = anchor.backbone.forward_features(views[0])[:, 2:]
        expected = gram.gram(seen, held)
    assert method.step(0, views).terms["gram"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 1e-3


def test_an_anchor_that_is_not_there_is_refused_before_anything_is_read(micro2, tmp_path):
    from pathfm_cli.pretrain import origin

    lost = micro2(f"loss.gram_anchor={tmp_path}/lost", "loss.gram=1.0")
    with pytest.raises(errors.InputError, match="to anchor patches at, does not exist"):
        origin.check(lost)


REG4 = (
    "model.arch=vit_large_patch14_reg4_dinov2",
    "model.patch_size=14",
    "model.reg_tokens=4",
    "crops.global_size_px=56",
    "crops.local_size_px=28",
    "data.size_px=64",
)


def meta_file(module, path, mask_token):
    """Meta's raw names: `register_tokens`, a place for the class token, 37 x 37 patches."""
    state = dict(module.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    width = state["cls_token"].shape[-1]
    generator = torch.Generator().manual_seed(1)
    state["pos_embed"] = torch.randn(1, 1 + 37 * 37, width, generator=generator)
    if mask_token is not None:
        state["mask_token"] = mask_token
    torch.save(state, path)
    return state


@pytest.mark.parametrize("with_token", [True, False])
def test_metas_raw_file_brings_its_mask_token(micro2, tmp_path, caplog, with_token):
    """In timm's architecture of the paper's ViT-L/14, narrow; without the token it stays zero."""
    arguments = networks.kwargs(micro2(*REG4))
    source = vit.build("vit_large_patch14_reg4_dinov2", **arguments)
    token = torch.arange(24.0)[None] if with_token else None
    file = tmp_path / "raw.pth"
    state = meta_file(source, file, token)
    student, teacher = networks.pair(micro2(*REG4, f"model.init={file}"))
    expected = torch.zeros(1, 24) if token is None else token
    for network in (student, teacher):
        assert network.mask_token.equal(expected)
        assert network.backbone.reg_token.equal(state["register_tokens"])
        class_ = state["cls_token"] + state["pos_embed"][:, :1]
        torch.testing.assert_close(network.backbone.cls_token, class_)
        assert network.backbone.pos_embed.shape == (1, 16, 24)


def test_timms_layout_of_the_papers_architecture_loads(micro2, tmp_path):
    arguments = networks.kwargs(micro2(*REG4))
    source = vit.build("vit_large_patch14_reg4_dinov2", **arguments)
    file = tmp_path / "timm.safetensors"
    safetensors_torch.save_file(source.state_dict(), file)
    student, _ = networks.pair(micro2(*REG4, f"model.init={file}"))
    for name, tensor in source.state_dict().items():
        assert student.backbone.state_dict()[name].equal(tensor), name
    assert not student.mask_token.any()


def test_a_mask_token_of_another_width_is_refused(micro2, tmp_path):
    source = vit.build("vit_large_patch14_reg4_dinov2", **networks.kwargs(micro2(*REG4)))
    meta_file(source, tmp_path / "raw.pth", torch.zeros(1, 7))
    with pytest.raises(errors.UsageError, match="has 7 values, not 24"):
        networks.pair(micro2(*REG4, f"model.init={tmp_path / 'raw.pth'}"))


def test_a_checkpoint_of_one_head_has_no_second_one(tissue, micro2, reference, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(reference, copy)
    newest = folder.checkpoints(copy / folder.CHECKPOINTS)[-1]
    for name in ("student", "teacher"):
        file = newest / f"{name}.safetensors"
        state = safetensors_torch.load_file(file)
        kept = {k: v for k, v in state.items() if not k.startswith("ibot_head.")}
        safetensors_torch.save_file(kept, file)
    with pytest.raises(errors.InputError, match="holds no head of patch tokens"):
        networks.pair(micro2(f"model.init={copy}", *KEEP))
