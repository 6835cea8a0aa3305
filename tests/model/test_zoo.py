"""Every published encoder: it can be built, and is as wide as the table says."""

from pathlib import Path

import pytest
import torch

from pathfm_cli.model import vit, weights, zoo


@pytest.mark.parametrize("name", list(zoo.entries()))
def test_architecture_width_and_prefix(name: str) -> None:
    entry = zoo.entries()[name]
    with torch.device("meta"):  # no memory for a billion numbers
        module = vit.build(entry.arch, **entry.kwargs)
    factor = 2 if entry.embedding == "cls+mean" else 1
    assert module.num_features * factor == entry.dim
    assert vit.prefix_tokens(module) == entry.prefix_tokens
    patch = module.get_submodule("patch_embed").patch_size[0]  # type: ignore[union-attr,index]
    assert entry.image_size_px % int(patch) == 0
    assert entry.licence and entry.get


def test_values_of_some_rows() -> None:
    kaiko, lunit = zoo.find("kaiko-s16"), zoo.find("lunit-s8")
    assert kaiko is not None and lunit is not None
    assert (kaiko.mean, kaiko.std, kaiko.dim) == ((0.5,) * 3, (0.5,) * 3, 384)
    assert lunit.mean == (0.70322989, 0.53606487, 0.66096631)
    assert lunit.source == zoo.FILE and "non-commercial" in lunit.licence
    assert zoo.find("kaiko-s17") is None and zoo.suggestion("kaiko-s17") == "kaiko-s16"


def test_means_and_deviations_are_those_of_the_authors() -> None:
    """Spelt from the encoders' published transforms; by default ImageNet's."""
    own = {
        "kaiko": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "midnight": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
        "bioptimus": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
        "hibou": ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)),
    }
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    entries = zoo.entries().values()
    assert set(own) < {entry.family for entry in entries}
    for entry in entries:
        expected = own.get(entry.family, imagenet)
        assert (tuple(entry.mean), tuple(entry.std)) == expected, entry.id


def test_a_file_of_a_named_encoder_gets_its_input_and_rule(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = vit.build("vit_small_patch16_224")
    torch.save(
        {"teacher": {f"backbone.{k}": v for k, v in module.state_dict().items()}},
        tmp_path / "s16.pth",
    )
    encoder = weights.load(tmp_path / "s16.pth", arch="lunit-s16", device="cpu")
    assert encoder.mean == (0.70322989, 0.53606487, 0.66096631)
    assert (encoder.dim, encoder.image_size_px, encoder.embedding) == (384, 224, "cls")
    plain = weights.load(tmp_path / "s16.pth", arch="vit_small_patch16_224", device="cpu")
    assert plain.id != encoder.id, "another input is another encoder"
