"""Every meaning of `--model`; foreign checkpoints written in the layouts of their authors."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from pathfm_cli import artifacts, errors
from pathfm_cli.model import export, foreign, shim, vit, weights

shim.apply()
import timm  # noqa: E402
from timm.layers import resample_abs_pos_embed  # noqa: E402

TINY = "vit_tiny_patch16_224"
REGISTERS = "vit_small_patch14_reg4_dinov2"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 240, 260, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(7)
    return timm.create_model(TINY, num_classes=0).eval()


def load(spec: Path | str, arch: str | None = TINY, **options: object) -> weights.Encoder:
    return weights.load(spec, arch=arch, device="cpu", **options)  # type: ignore[arg-type]


def assert_same(encoder: weights.Encoder, expected: nn.Module) -> None:
    found, wanted = encoder.module.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0, msg=name)


def head() -> dict[str, torch.Tensor]:
    return {
        "head.mlp.0.weight": torch.ones(4, 192),
        "head.last_layer.weight_g": torch.ones(4, 1),
        "head.last_layer.weight_v": torch.ones(4, 4),
    }


def test_full_dino_checkpoint_gives_the_teacher(tmp_path: Path, tiny: nn.Module) -> None:
    teacher = {f"backbone.{k}": v for k, v in tiny.state_dict().items()} | head()
    student = {f"module.{k}": torch.zeros_like(v) for k, v in teacher.items()}
    content = {
        "student": student,
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    encoder = load(tmp_path / "checkpoint.pth")
    assert_same(encoder, tiny)
    assert encoder.dropped == (
        *("student", "optimizer", "epoch", "args", "dino_loss"),
        *("head.mlp.0.weight", "head.last_layer.weight_g", "head.last_layer.weight_v"),
    )


def test_module_prefix_of_a_parallel_teacher(tmp_path: Path, tiny: nn.Module) -> None:
    teacher = {f"module.backbone.{k}": v for k, v in tiny.state_dict().items()}
    torch.save({"teacher": teacher}, tmp_path / "a.pt")
    assert_same(load(tmp_path / "a.pt"), tiny)


def test_bare_state_dict_as_safetensors_and_with_a_classifier(
    tmp_path: Path, tiny: nn.Module
) -> None:
    state = tiny.state_dict() | {"head.weight": torch.ones(3, 192), "head.bias": torch.ones(3)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    encoder = load(tmp_path / "a.safetensors")
    assert_same(encoder, tiny)
    assert set(encoder.dropped) == {"head.weight", "head.bias"}


def test_ibot_teacher_with_a_mask_embedding(tmp_path: Path, tiny: nn.Module) -> None:
    state = {"masked_embed": torch.zeros(1, 192), **tiny.state_dict()}
    torch.save({"state_dict": state}, tmp_path / "checkpoint_teacher.pth")
    encoder = load(tmp_path / "checkpoint_teacher.pth")
    assert_same(encoder, tiny)
    assert encoder.dropped == ("masked_embed",)


def test_half_precision_numbers_are_kept_as_they_are(tmp_path: Path, tiny: nn.Module) -> None:
    half = {k: v.half() for k, v in tiny.state_dict().items()}
    torch.save(half, tmp_path / "a.torch")
    found = load(tmp_path / "a.torch").module.state_dict()
    assert all(torch.equal(found[k], v.float()) for k, v in half.items())


def dinov2_layout(module: nn.Module) -> dict[str, torch.Tensor]:
    """Names and shapes of facebookresearch/dinov2 with registers, blocks in chunks of 6."""
    state = {k: v.clone() for k, v in module.state_dict().items()}
    class_position = torch.full((1, 1, 384), 0.25)
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] -= class_position
    state["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, 384)
    layout = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            number = int(name.split(".")[1])
            name = f"blocks.{number // 6}.{name.removeprefix('blocks.')}"
        layout[name] = tensor
    return layout


@pytest.fixture(scope="module")
def registers() -> nn.Module:
    torch.manual_seed(8)
    module = timm.create_model(REGISTERS, num_classes=0).eval()
    nn.init.normal_(module.reg_token)
    return module


def test_dinov2_teacher_checkpoint(tmp_path: Path, registers: nn.Module) -> None:
    backbone = {f"backbone.{k}": v for k, v in dinov2_layout(registers).items()}
    heads = {"dino_head.mlp.0.weight": torch.ones(1), "ibot_head.last_layer.weight": torch.ones(1)}
    torch.save({"teacher": backbone | heads}, tmp_path / "teacher_checkpoint.pth")
    encoder = load(tmp_path / "teacher_checkpoint.pth", REGISTERS)
    found = encoder.module.state_dict()
    for name, tensor in registers.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=0, msg=name)
    assert encoder.image_size_px == 224 and encoder.prefix_tokens == 5
    expected = {"dino_head.mlp.0.weight", "ibot_head.last_layer.weight", "backbone.mask_token"}
    assert set(encoder.dropped) == expected


def test_dinov2_sharded_model_agrees_with_timms_own_conversion(registers: nn.Module) -> None:
    layout = dinov2_layout(registers)
    model = {f"teacher.backbone.{k}": v for k, v in layout.items()}
    model |= {f"student.backbone.{k}": torch.zeros(1) for k in layout}
    state, beside = foreign.select({"model": model, "iteration": 3}, "model.rank_0.pth")
    kept, dropped = foreign.convert(state, class_in_pos_embed=False)
    unchunked = {
        "blocks." + name.split(".", 2)[2] if name.startswith("blocks.") else name: tensor
        for name, tensor in layout.items()
    }
    expected = vit.adapt(unchunked, registers)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert dropped == ["mask_token"]
    assert "iteration" in beside and "student.backbone.cls_token" in beside


def test_swiglu_names() -> None:
    names = ["blocks.0.7.mlp.w12.weight", "blocks.0.7.mlp.w3.bias", "blocks.1.19.mlp.w12.bias"]
    kept, _ = foreign.convert({n: torch.zeros(1) for n in names}, class_in_pos_embed=True)
    assert list(kept) == [
        "blocks.7.mlp.fc1.weight",
        "blocks.7.mlp.fc2.bias",
        "blocks.19.mlp.fc1.bias",
    ]


@pytest.mark.parametrize("prefix", [1, 0])
def test_positions_are_resampled_as_timm_does(prefix: int) -> None:
    positions = torch.randn(1, prefix + 12 * 12, 8, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(positions, [14, 14], num_prefix_tokens=prefix)
    found = foreign.resample_positions(positions, (14, 14), prefix)
    torch.testing.assert_close(found, expected)


def test_a_checkpoint_of_another_input_size_loads(tmp_path: Path) -> None:
    small = timm.create_model(TINY, num_classes=0, img_size=96)
    torch.save(small.state_dict(), tmp_path / "a.pth")
    found = load(tmp_path / "a.pth").module.state_dict()["pos_embed"]
    expected = resample_abs_pos_embed(small.pos_embed, [14, 14], num_prefix_tokens=1)
    torch.testing.assert_close(found, expected)


def test_strict_loading_names_what_is_wrong(tmp_path: Path, tiny: nn.Module) -> None:
    state = tiny.state_dict()
    del state["norm.bias"]
    state["surprise"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(errors.InputError, match=r"norm\.bias is missing, surprise is left over"):
        load(tmp_path / "a.pth")
    with pytest.raises(
        errors.InputError, match=r"does not fit vit_small.*cls_token is \(1, 1, 192\)"
    ):
        torch.save(tiny.state_dict(), tmp_path / "a.pth")
        load(tmp_path / "a.pth", "vit_small_patch16_224")


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_a_malicious_checkpoint_is_refused(tmp_path: Path, form: str) -> None:
    file, trap = tmp_path / "a.pth", tmp_path / "trap"
    if form == "pickle":
        file.write_bytes(pickle.dumps({"cls_token": Evil(trap)}))
    else:
        torch.save({"x": Evil(trap)}, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(errors.InputError, match="pathfm never does that|is damaged") as caught:
        load(file)
    assert not trap.exists()
    if form == "torch":
        assert "mkdir" in str(caught.value) and "safetensors" in caught.value.hint


def test_damaged_and_foreign_files(tmp_path: Path, tiny: nn.Module) -> None:
    torch.save(tiny.state_dict(), tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pth").write_bytes(os.urandom(2000))
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 2000)
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "numbers.pth")
    for name in ("cut.pth", "noise.pth", "noise.safetensors"):
        with pytest.raises(errors.InputError, match="damaged|pathfm never does that"):
            load(tmp_path / name)
    for name in ("list.pth", "numbers.pth"):
        with pytest.raises(errors.InputError, match="no table of named tensors"):
            load(tmp_path / name)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(errors.InputError, match="compressed"):
        load(tmp_path / "a.pth")


def exported(folder: Path, module: nn.Module, **kwargs: object) -> None:
    info = export.Info(
        arch=TINY, kwargs=kwargs, image_size_px=96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    header = artifacts.Header(kind="checkpoint", settings={"recipe": "r"})
    export.export(folder, module, info, header)


def test_a_run_folder_and_its_file_are_the_same_encoder(tmp_path: Path) -> None:
    module = timm.create_model(
        TINY, num_classes=0, depth=2, img_size=96, dynamic_img_size=True
    ).eval()
    exported(tmp_path, module, depth=2, img_size=96, dynamic_img_size=True)
    run = load(tmp_path, None)
    file = load(tmp_path / "teacher.safetensors", None)
    assert_same(run, module)
    assert run.id == file.id and run.name == TINY
    assert (run.image_size_px, run.mean, run.std) == (96, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(errors.UsageError, match="--arch"):
        load(tmp_path)
    (tmp_path / "model.json").write_text(
        (tmp_path / "model.json").read_text().replace('"depth": 2', '"depth": 3')
    )
    with pytest.raises(errors.InputError, match=r"does not fit its model\.json"):
        load(tmp_path, None)


def test_model_json_cannot_name_other_files(tmp_path: Path, tiny: nn.Module) -> None:
    exported(tmp_path, tiny, checkpoint_path="/etc/passwd")
    with pytest.raises(errors.InputError, match="checkpoint_path"):
        load(tmp_path, None)


def test_fresh_weights_follow_the_seed() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (load(f"random/{TINY}", None, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert_same(one, timm.create_model(TINY, num_classes=0))
    assert one.id == again.id != other.id
    assert len(one.id) == 12 and one.name == f"random/{TINY}" and one.dim == 192


def test_the_id_follows_weights_not_their_file(tmp_path: Path, tiny: nn.Module) -> None:
    state = tiny.state_dict()
    torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    state["norm.bias"] = state["norm.bias"] + 1e-6
    torch.save(state, tmp_path / "c.pth")
    a, b, c = (load(tmp_path / name) for name in ("a.pth", "b.safetensors", "c.pth"))
    assert a.id == b.id != c.id
    assert load(tmp_path / "a.pth", mean=(0.4, 0.4, 0.4)).id != a.id


def test_encode_equals_timms_forward_on_single_images(tiny: nn.Module, tmp_path: Path) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    torch.save(tiny.state_dict(), tmp_path / "a.pth")
    encoder = load(tmp_path / "a.pth", mean=(0.7, 0.6, 0.5), std=(0.2, 0.3, 0.4))
    steps = [v2.Resize(224, antialias=True), v2.CenterCrop(224)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(encoder.mean, encoder.std)]
    with torch.no_grad():
        expected = torch.cat(
            [
                tiny(v2.Compose(steps)(torch.from_numpy(image).permute(2, 0, 1))[None])
                for image in IMAGES
            ]
        )
    torch.testing.assert_close(encoder.encode(IMAGES), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode(list(IMAGES)), expected, atol=1e-5, rtol=0)


def test_image_sizes_are_checked() -> None:
    assert load(f"random/{TINY}", None, image_size_px=112).image_size_px == 112
    with pytest.raises(errors.UsageError, match="multiples of 16") as caught:
        load(f"random/{TINY}", None, image_size_px=100)
    assert caught.value.hint == "--image-size 96"
    with pytest.raises(errors.UsageError, match="only 224 px"):
        load("random/swin_tiny_patch4_window7_224", None, image_size_px=256)


@pytest.mark.parametrize(
    ("spec", "arch", "kind", "message"),
    [
        ("nowhere/model.pth", None, errors.InputError, "does not exist"),
        ("./nowhere", None, errors.InputError, "does not exist"),
        ("random/vit_smal_patch16_224", None, errors.UsageError, "timm has no model"),
        ("vit_smal_patch16_224", None, errors.UsageError, "timm has no model"),
        (f"random/{TINY}", TINY, errors.UsageError, "says itself"),
        ("kaiko-s61", None, errors.UsageError, "There is no model 'kaiko-s61'"),
        ("local-dir:/etc", None, errors.UsageError, "no model"),
    ],
)
def test_specs_that_mean_nothing(
    spec: str, arch: str | None, kind: type[errors.PathfmError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        load(spec, arch)
    assert caught.value.hint


def test_a_file_needs_its_architecture(tmp_path: Path, tiny: nn.Module) -> None:
    torch.save(tiny.state_dict(), tmp_path / "a.pth")
    with pytest.raises(errors.UsageError, match="which architecture") as caught:
        load(tmp_path / "a.pth", None)
    assert "--arch" in caught.value.hint
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(errors.UsageError, match="no checkpoint"):
        load(tmp_path / "a.txt")


def test_offline_pretrained_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.InputError, match="cannot be reached") as caught:
        load("vit_tiny_patch16_224.augreg_in21k", None)
    assert "random/vit_tiny_patch16_224" in caught.value.hint
