"""Student and teacher: what differs, what is copied, what is refused."""

import pytest
import torch

from pathfm_cli import artifacts, errors
from pathfm_cli.model import export
from pathfm_cli.pretrain import networks


def test_teacher_is_the_student_without_stochastic_depth(micro):
    student, teacher = networks.pair(micro())
    for name, tensor in student.state_dict().items():
        assert tensor.equal(teacher.state_dict()[name])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert student.backbone.blocks[1].drop_path1.drop_prob == pytest.approx(0.3)
    images = [torch.randn(4, 3, 32, 32)]
    assert teacher(images).equal(teacher(images))
    assert not student(images).equal(student(images))


def test_first_weights_follow_the_seed(micro):
    torch.manual_seed(5)
    one, _ = networks.pair(micro())
    torch.manual_seed(6)
    same, _ = networks.pair(micro())
    other, _ = networks.pair(micro("train.seed=1"))
    assert one.backbone.pos_embed.equal(same.backbone.pos_embed)
    assert not one.backbone.pos_embed.equal(other.backbone.pos_embed)
    assert 0.01 < one.backbone.cls_token.std() < 0.04  # DINO: truncated normal, 0.02


def test_crops_of_two_sizes_come_out_in_order(micro):
    _, teacher = networks.pair(micro())
    big, small = torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)
    together = teacher([big, small])
    assert together.shape == (10, 64)
    torch.testing.assert_close(together[:4], teacher([big]))
    torch.testing.assert_close(together[4:], teacher([small]))


def test_count_is_that_of_the_encoder(micro):
    settings = micro()
    _, teacher = networks.pair(settings)
    assert networks.count(settings) == sum(p.numel() for p in teacher.backbone.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.arch=vit_tinny_patch16_224", "timm has no model"),
        ("model.num_heads=5", "cannot be built"),
        ("crops.local_size_px=20", "no multiple of the encoder's patch size 8"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(micro, change, message):
    with pytest.raises(errors.UsageError, match=message) as caught:
        networks.count(micro(change))
    assert caught.value.hint


def test_init_from_an_export_takes_its_weights(micro, tmp_path):
    settings = micro("train.seed=3")
    _, teacher = networks.pair(settings)
    info = export.Info(
        arch=settings.model.arch,
        kwargs=networks.kwargs(settings),
        image_size_px=32,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    export.export(tmp_path, teacher.backbone, info, artifacts.Header(kind="checkpoint"))
    student, _ = networks.pair(micro(f"model.init={tmp_path}"))
    for name, tensor in teacher.backbone.state_dict().items():
        assert student.backbone.state_dict()[name].equal(tensor)


def test_init_from_weights_of_another_shape_is_refused(micro, tmp_path):
    test_init_from_an_export_takes_its_weights(micro, tmp_path)
    with pytest.raises(errors.UsageError, match="do not fit"):
        networks.pair(micro(f"model.init={tmp_path}", "model.embed_dim=48"))


def test_a_mean_of_tokens_as_embedding(micro):
    _, teacher = networks.pair(micro("model.global_pool=avg", "head.batch_norm=true"))
    backbone, images = teacher.backbone, torch.randn(3, 3, 32, 32)
    mean = backbone.forward_features(images)[:, 1:].mean(dim=1)
    torch.testing.assert_close(backbone(images), backbone.fc_norm(mean))
    assert any(isinstance(layer, torch.nn.BatchNorm1d) for layer in teacher.head.mlp)
