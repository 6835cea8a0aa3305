"""First weights: full checkpoints as their authors write them, and runs of pathfm."""

import argparse
import logging
import resource

import pytest
import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import export
from pathfm_cli.pretrain import checkpoint, dino, networks, origin, place, run

HERE = place.Place(0, 1, torch.device("cpu"))
KEEP = ("start.student=own", "start.heads=keep", "start.centre=keep")
CENTRE = torch.arange(64.0)


@pytest.fixture(scope="module")
def made(micro):
    """States of a student and of a teacher with other weights: `backbone.*` and `head.*`."""
    student, _ = networks.pair(micro("train.seed=6"))
    _, teacher = networks.pair(micro("train.seed=5"))
    return student.state_dict(), teacher.state_dict()


def dino_file(student, teacher):
    return {
        "student": {f"module.{name}": tensor for name, tensor in student.items()},
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny"),
        "dino_loss": {"center": CENTRE[None]},
    }


def ibot_file(student, teacher):
    second = {"head.last_layer2.weight_v": torch.zeros(8, 16)}
    content = dino_file(student, {**teacher, **second})
    content["ibot_loss"] = {"center": content.pop("dino_loss")["center"], "center2": CENTRE}
    return content


def dinov2_file(student, teacher):
    def named(prefix, state):
        return {f"{prefix}.{name.replace('head.', 'dino_head.')}": t for name, t in state.items()}

    heads = {"teacher.ibot_head.mlp.0.weight": torch.zeros(4, 4)}
    model = {**named("teacher", teacher), **named("student", student), **heads}
    return {"model": {**model, "dino_loss.center": CENTRE[None]}, "iteration": 9}


LAYOUTS = {"dino": dino_file, "ibot": ibot_file, "dinov2": dinov2_file}


def write(made, folder, layout="dino"):
    path = folder / f"{layout}.pth"
    torch.save(LAYOUTS[layout](*made), path)
    return path


def equal(network, state, part):
    tensors = {k: v for k, v in network.state_dict().items() if k.startswith(part)}
    return all(tensor.equal(state[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_checkpoint_gives_all_it_has(made, micro, tmp_path, layout):
    method = dino.Dino(micro(f"model.init={write(made, tmp_path, layout)}", *KEEP), HERE)
    assert equal(method.student, made[0], "") and equal(method.teacher, made[1], "")
    assert method.centre.centre_K.equal(CENTRE)


def test_of_a_full_checkpoint_the_teachers_encoder_is_enough(made, micro, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "pathfm.pretrain"):
        path = write(made, tmp_path)
        student, teacher = networks.pair(micro(f"model.init={path}"))
    assert equal(student, made[1], "backbone.") and equal(teacher, made[1], "backbone.")
    assert equal(student, teacher.state_dict(), "head.") and not equal(student, made[1], "head.")
    assert f"first weights: {path}; left aside: student, optimizer, epoch and" in caplog.text


def test_a_newer_spelling_of_weight_norm(made, micro, tmp_path):
    new = {"weight_g": "parametrizations.weight.original0"}
    new["weight_v"] = "parametrizations.weight.original1"
    teacher = dict(made[1])
    for old, name in new.items():
        teacher[f"head.last_layer.{name}"] = teacher.pop(f"head.last_layer.{old}")
    torch.save({"teacher": teacher}, tmp_path / "a.pth")
    changes = (f"model.init={tmp_path / 'a.pth'}", "start.heads=keep")
    student, loaded = networks.pair(micro(*changes))
    assert equal(student, made[1], "head.") and equal(loaded, made[1], "head.")


def test_a_bare_encoder_as_kaiko_releases_it(made, micro, tmp_path):
    bare = {k.removeprefix("backbone."): v for k, v in made[1].items() if k.startswith("backbone.")}
    torch.save(bare, tmp_path / "vits16.pth")
    student, _ = networks.pair(micro(f"model.init={tmp_path / 'vits16.pth'}"))
    assert equal(student, made[1], "backbone.")
    with pytest.raises(errors.InputError, match="vits16.pth holds no projection head"):
        networks.pair(micro(f"model.init={tmp_path / 'vits16.pth'}", "start.heads=keep"))


@pytest.mark.parametrize(
    ("change", "changes", "message", "hint"),
    [
        ({}, ("head.prototypes=32",), "The head of .* does not fit the recipe", "prototypes=64"),
        ({"backbone.norm.extra": CENTRE}, (), "norm.extra is left over", "model.init=scratch"),
        ({"backbone.norm.bias": CENTRE}, (), r"norm.bias is \(64,\), not \(24,\)", "model.arch"),
        ({"head.extra": CENTRE}, (), "extra is left over", "start.heads=fresh"),
    ],
)
def test_what_does_not_fit_is_refused(made, micro, tmp_path, change, changes, message, hint):
    path = write((made[0], {**made[1], **change}), tmp_path)
    with pytest.raises(errors.UsageError, match=message) as caught:
        networks.pair(micro(f"model.init={path}", "start.heads=keep", *changes))
    assert hint in caught.value.hint


def test_a_file_that_contains_itself_ends(tmp_path, micro):
    loop: dict = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    with pytest.raises(errors.InputError, match="no table of named tensors"):
        networks.pair(micro(f"model.init={tmp_path / 'loop.pth'}"))


@pytest.fixture(scope="module")
def trained(micro, tmp_path_factory):
    """A run of one step: its folder and what was trained."""
    folder = tmp_path_factory.mktemp("run1")
    settings = micro("loss.freeze_last_layer_epochs=0", "optim.warmup_epochs=0")
    method = dino.Dino(settings, HERE)
    generator = torch.Generator().manual_seed(0)
    method.step(0, [torch.randn(n, 3, s, s, generator=generator) for n, s in ((8, 32), (8, 16))])
    checkpoint.save(folder / "checkpoints", 1, method, "run1")
    info = export.Info(
        arch=settings.model.arch,
        kwargs=networks.kwargs(settings),
        image_size_px=32,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    header = artifacts.Header(kind="checkpoint", settings={"made": "here"})
    export.export(folder, method.teacher.backbone, info, header)
    return folder, method


def test_a_checkpoint_that_finds_no_room_is_a_sentence_and_leaves_nothing(trained, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(errors.PathfmError, match="step 2 cannot be written"):
            checkpoint.save(tmp_path, 2, trained[1], "run1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_everything(trained, micro):
    folder, before = trained
    after = dino.Dino(micro(f"model.init={folder}", *KEEP, "start.moments=keep"), HERE)
    assert equal(after.student, before.student.state_dict(), "")
    assert equal(after.teacher, before.teacher.state_dict(), "")
    assert not equal(after.student, before.teacher.state_dict(), "backbone.")
    assert after.centre.centre_K.equal(before.centre.centre_K)
    assert before.optimiser.state
    olds = dict(before.student.named_parameters())
    for name, parameter in after.student.named_parameters():
        if parameter.requires_grad:
            state, old = after.optimiser.state[parameter], before.optimiser.state[olds[name]]
            assert state.keys() == old.keys() and all(state[k].equal(old[k]) for k in state), name


def test_the_papers_second_phase_starts_without_moments(trained, micro):
    folder, before = trained
    after = dino.Dino(micro(f"model.init={folder}", *KEEP), HERE)
    assert equal(after.student, before.student.state_dict(), "") and not after.optimiser.state


def test_what_is_kept_of_a_run_is_part_of_the_identity(trained, micro, tissue):
    folder, _ = trained
    plain = run.identity(tissue, micro(f"model.init={folder}"))
    kept = run.identity(tissue, micro(f"model.init={folder}", *KEEP))
    assert len(plain.parents) == 2 and len(kept.parents) > 4
    assert plain.parents == kept.parents[:2]


def test_an_export_alone_has_no_heads(trained, micro, tmp_path):
    for name in ("teacher.safetensors", "model.json"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    networks.pair(micro(f"model.init={tmp_path}"))
    with pytest.raises(errors.InputError, match="keeps no checkpoint") as caught:
        networks.pair(micro(f"model.init={tmp_path}", *KEEP))
    assert "start.heads=fresh" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (("model.init=gone/",), errors.InputError, "gone/, to start from, does not exist"),
        (("model.init=gone.pth",), errors.InputError, "gone.pth, to start from, does not exist"),
        (("start.heads=keep",), errors.UsageError, "start.heads is 'keep', but scratch is no run"),
    ],
)
def test_a_start_that_cannot_be_is_refused_at_once(micro, changes, error, message):
    with pytest.raises(error, match=message):
        origin.check(micro(*changes))
