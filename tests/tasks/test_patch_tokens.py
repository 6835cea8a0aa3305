"""`--embedding`: class token, its neighbour the mean, or all patch tokens, against timm's own."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from pathfm_cli import artifacts, errors
from pathfm_cli.model import shim, weights
from pathfm_cli.report import inputs, maps
from pathfm_cli.tasks import embed, features, pictures, source, storage

shim.apply()
import timm  # noqa: E402

TINY = "vit_tiny_patch16_224"
TOKENS, WIDTH = 4, 192
"""Of a 32 px image in patches of 16 px."""


def load(embedding: str | None, arch: str = TINY, side_px: int = 32) -> weights.Encoder:
    return weights.load(f"random/{arch}", device="cpu", image_size_px=side_px, embedding=embedding)


def noise(count: int, side_px: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, side_px, side_px, 3), dtype=np.uint8)


def timm_tokens(pictures: np.ndarray, arch: str = TINY) -> np.ndarray:
    """All tokens after the last norm, (B, N, D), of the same seed's weights."""
    torch.manual_seed(0)
    plain = timm.create_model(arch, num_classes=0, dynamic_img_size=True).eval()
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        return plain.forward_features(pixels).numpy()


def made(pictures: np.ndarray, broken: int | None = None) -> source.Source:
    def read(row: int) -> np.ndarray:
        if row == broken:
            raise errors.SlideError("it is torn")
        return pictures[row]

    rows = pl.DataFrame({"id": [f"i{n:03}" for n in range(len(pictures))]})
    return source.Source(rows=rows, read=read, parent="images:0", settings={}, what="images")


def test_each_rule_is_what_it_says() -> None:
    pictures = noise(2)
    tokens = timm_tokens(pictures)
    mean = tokens[:, 1:].mean(1)
    wanted = {"cls": tokens[:, 0], "cls+mean": np.hstack([tokens[:, 0], mean])}
    for rule, expected in {**wanted, "patch": tokens[:, 1:]}.items():
        encoder = load(rule)
        assert encoder.shape == expected.shape[1:] and encoder.settings()["embedding"] == rule
        np.testing.assert_allclose(encoder.encode(pictures).numpy(), expected, atol=1e-4)


def test_the_rule_is_part_of_the_identity_and_the_own_rule_asked_for_is_none() -> None:
    ids = [load(rule).id for rule in (None, "cls", "cls+mean", "patch")]
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_an_encoder_that_pools_still_gives_its_class_token() -> None:
    averaging = "eva02_tiny_patch14_224"
    own, cls = load(None, averaging, 224), load("cls", averaging, 224)
    assert (own.embedding, cls.embedding) == ("avg", "cls") and own.id != cls.id
    picture = noise(1, 224)
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    pixels = ((torch.from_numpy(picture) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        tokens = own.module.forward_features(pixels)
    np.testing.assert_allclose(cls.encode(picture).numpy(), tokens[:, 0].numpy(), atol=1e-4)


def test_networks_without_tokens_are_refused() -> None:
    with pytest.raises(errors.UsageError, match="resnet18 has no square grid of patch tokens"):
        load("patch", "resnet18")
    with pytest.raises(errors.UsageError, match="has no class token"):
        load("cls+mean", "vit_wee_patch16_reg1_gap_256", 256)
    with pytest.raises(errors.UsageError, match="--embedding cls-mean is none of cls, cls"):
        load("cls-mean")


def test_a_file_of_patch_tokens(tmp_path: Path) -> None:
    pictures, out = noise(5), tmp_path / "e.parquet"
    done = embed.embed(made(pictures, broken=2), load("patch"), out, embed.Reading(batch_size=2))
    assert (done.record["rows"], done.record["failed"]) == (5, 1)
    assert artifacts.read_header(out).settings["embedding"] == "patch"
    frame = pl.read_parquet(out)
    assert frame.schema["embedding"] == pl.Array(pl.Float32, (TOKENS, WIDTH))
    assert frame["embedding"].is_null().to_list() == [False, False, True, False, False]
    found = frame.filter(pl.col("error").is_null())["embedding"].to_numpy()
    np.testing.assert_allclose(found, timm_tokens(pictures)[[0, 1, 3, 4], 1:], atol=1e-4)


def test_a_stopped_run_of_patch_tokens_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CHUNK_BYTES", 4 * TOKENS * WIDTH * 4)
    pictures, encoder, out = noise(14), load("patch"), tmp_path / "stopped.parquet"
    embed.embed(made(pictures), encoder, tmp_path / "whole.parquet", embed.Reading(batch_size=3))
    header = artifacts.read_header(tmp_path / "whole.parquet")
    with pytest.raises(errors.TooManyFailures):
        reading = embed.Reading(batch_size=3, workers=1, max_failed=0)
        embed.embed(made(pictures, broken=9), encoder, out, reading)
    # The third chunk of four has a row that failed; what was whole before stays.
    parts = artifacts.Parts(out, header)
    assert parts.done() == {0, 1, 2}
    (parts.folder / "00000002.parquet").unlink()
    embed.embed(made(pictures), encoder, out)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_what_takes_one_vector_an_image_refuses_them(tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    embed.embed(made(noise(1)), load("patch"), out)
    for opening in (
        lambda: features.open_features(out),
        lambda: pictures.pca_map(out, tmp_path / "p.png"),
    ):
        with pytest.raises(errors.InputError, match=r"patch tokens, a matrix an image \(4 x 192\)"):
            opening()
    text = maps.section(inputs.open_inputs([str(out)])[0])
    assert "4 patch tokens of 192 numbers an image: no map." in text
    pl.DataFrame({"embedding": [[[1.0, 2.0]], [[3.0, 4.0]]]}).write_parquet(tmp_path / "f.parquet")
    with pytest.raises(errors.InputError, match="one vector an image is needed"):
        features.open_features(tmp_path / "f.parquet")


def test_chunks_and_rooms_follow_the_size_of_a_row(tmp_path: Path) -> None:
    assert storage.row_bytes((196, 384)) == 301_056
    assert storage.chunk_rows((384,), 2048) == 2048
    assert storage.chunk_rows((196, 384), 2048) == 128  # 256 would be 77 MB
    assert storage.chunk_rows((10_000, 10_000), 2048) == 1
    storage.check_room(tmp_path / "not" / "there" / "e.parquet", (384,), 10, 10)
    with pytest.raises(errors.PathfmError, match=r"of 10 images, 1000000000 x 1000 floats each"):
        storage.check_room(tmp_path / "e.parquet", (10**9, 1000), 0, 10)


def test_density_is_kept_before_every_rule(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean((2, 3))[:, None].repeat(1, 2, 1)

    from pathfm_cli.model import density, pooling

    grey = density.OnDensity(Two(), (0.5,) * 3, (0.5,) * 3)
    found = pooling.by_rule(grey, "patch", "cls", 1)(torch.randn(2, 3, 8, 8))
    assert found.shape == (2, 1, 3)
    torch.testing.assert_close(found, torch.zeros(2, 1, 3), atol=1e-6, rtol=0)
