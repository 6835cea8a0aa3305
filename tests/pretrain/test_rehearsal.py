"""A run tried out: what it says of memory does not depend on how it was tried."""

import pytest

from pathfm_cli.pretrain import rehearsal, run, share

SIZE = run.Size(parameters=0, share=share.share(8, 1))


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_bytes_of_a_patch_are_the_same_for_any_number_of_patches(
    micro, micro2, monkeypatch, method
):
    # So many prototypes that their lengths, which no patch needs, are most of what is kept.
    changes = ("train.batch_size=8", "loss.koleo=0.0", "head.prototypes=65536")
    settings = (micro if method == "dino" else micro2)(*changes)
    found = []
    for patches in (2, 4):
        monkeypatch.setattr(rehearsal, "CPU_PATCHES", patches)
        found.append(rehearsal._steps(settings, SIZE, "cpu", 0.01))
    two, four = (step.patch_bytes for step in found)
    assert two == pytest.approx(four, rel=0.1)
    # At least the pixels of both global and both local views, as float32.
    assert two > 4 * 3 * (2 * 32**2 + 2 * 16**2)
    assert found[0].state_bytes == pytest.approx(found[1].state_bytes, rel=0.1)


def test_first_weights_are_not_asked_for(micro):
    settings = micro("model.init=vit_tiny_patch16_224.augreg_in21k")
    assert rehearsal._steps(settings, SIZE, "cpu", 0.01).patches_per_s > 0
