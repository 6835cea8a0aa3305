"""Embeddings against plain timm and torchvision; resume, error rows, memory and identity."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import nn

from pathfm_cli import artifacts, errors
from pathfm_cli.model import shim, weights
from pathfm_cli.tasks import embed, images, source

shim.apply()
import timm  # noqa: E402

ORGAN4 = Path(__file__).parents[2].parent / "shared" / "data" / "patches" / "organ4"
TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def encoder() -> weights.Encoder:
    return weights.load(f"random/{TINY}", device="cpu", image_size_px=32)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(TINY, num_classes=0, dynamic_img_size=True).eval()


def expected(plain: nn.Module, pictures: list[np.ndarray], size_px: int) -> np.ndarray:
    """One image at a time through torchvision v2 and timm."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    steps = [v2.Resize(size_px, antialias=True), v2.CenterCrop(size_px)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)]
    prepare = v2.Compose(steps)
    with torch.no_grad():
        each = [plain(prepare(torch.from_numpy(p).permute(2, 0, 1))[None]) for p in pictures]
    return torch.cat(each).numpy()


def made(pictures: list[np.ndarray | str]) -> source.Source:
    """A source whose images are given; a string is the error that reading it raises."""

    def read(row: int) -> np.ndarray:
        picture = pictures[row]
        if isinstance(picture, str):
            raise errors.SlideError(picture)
        return picture

    rows = pl.DataFrame({"id": [f"i{n:05}" for n in range(len(pictures))]})
    return source.Source(rows=rows, read=read, parent="images:0", settings={}, what="images")


def noise(count: int, height: int = 32, width: int = 32, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def vectors(path: Path) -> np.ndarray:
    return pl.read_parquet(path)["embedding"].to_numpy()


def test_real_tiles_equal_plain_timm(tmp_path: Path, plain: nn.Module) -> None:
    if not ORGAN4.exists():
        pytest.skip("shared/data/patches/organ4 is absent")
    table = pl.read_csv(ORGAN4 / "labels.csv").gather([0, 1, 250, 401, 599])
    files = [str(ORGAN4 / name) for name in table["file"]]
    table.with_columns(pl.Series("file", files)).write_csv(tmp_path / "t.csv")
    data = images.open_images(tmp_path / "t.csv", source.Columns(label="organ"))
    encoder = weights.load(f"random/{TINY}", device="cpu")
    embed.embed(data, encoder, tmp_path / "e.parquet", embed.Reading(batch_size=3))
    pictures = [np.array(Image.open(name).convert("RGB")) for name in files]
    np.testing.assert_allclose(
        vectors(tmp_path / "e.parquet"), expected(plain, pictures, 224), atol=1e-4
    )
    frame = pl.read_parquet(tmp_path / "e.parquet")
    assert frame["label"].to_list() == table["organ"].to_list()
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 192)


def test_sizes_are_mixed_and_large_images_shrunk_where_read(
    tmp_path: Path, encoder: weights.Encoder, plain: nn.Module
) -> None:
    pictures = [*noise(2, 40, 50), *noise(1, 300, 200), *noise(2, 32, 32), *noise(1, 50, 40)]
    embed.embed(made(pictures), encoder, tmp_path / "e.parquet", embed.Reading(batch_size=4))
    np.testing.assert_allclose(
        vectors(tmp_path / "e.parquet"), expected(plain, pictures, 32), atol=1e-4
    )


def test_a_bad_image_is_one_error_row(
    tmp_path: Path, encoder: weights.Encoder, plain: nn.Module
) -> None:
    pictures = noise(5)
    done = embed.embed(
        made([*pictures[:2], "it is torn", *pictures[2:]]), encoder, tmp_path / "e.parquet"
    )
    assert done.record["rows"] == 6 and done.record["failed"] == 1
    assert done.failures == [("i00002", "it is torn")]
    frame = pl.read_parquet(tmp_path / "e.parquet")
    assert frame["embedding"].is_null().to_list() == [False, False, True, False, False, False]
    assert frame["error"].to_list() == [None, None, "it is torn", None, None, None]
    good = frame.filter(pl.col("error").is_null())["embedding"].to_numpy()
    np.testing.assert_allclose(good, expected(plain, pictures, 32), atol=1e-4)


def test_all_images_bad_is_still_an_artifact(tmp_path: Path, encoder: weights.Encoder) -> None:
    done = embed.embed(made(["gone"] * 3), encoder, tmp_path / "e.parquet")
    assert done.record["failed"] == 3
    table = artifacts.read_table(tmp_path / "e.parquet", "embeddings")
    assert table.frame["embedding"].null_count() == 3
    assert table.frame.schema["embedding"] == pl.Array(pl.Float32, 192)


def test_too_many_failures_end_the_run_without_a_result(
    tmp_path: Path, encoder: weights.Encoder
) -> None:
    data = made(["torn", *noise(1), "torn"])
    with pytest.raises(errors.TooManyFailures, match="2 of 3 images failed, first i00000: torn"):
        embed.embed(data, encoder, tmp_path / "e.parquet", embed.Reading(max_failed=1))
    assert not (tmp_path / "e.parquet").exists()
    with pytest.raises(errors.TooManyFailures, match="2 of 3 images"):
        embed.embed(data, encoder, tmp_path / "e.parquet", embed.Reading(max_failed=1))
    assert (
        embed.embed(data, encoder, tmp_path / "e.parquet", embed.Reading(max_failed=2)).record[
            "failed"
        ]
        == 2
    )


def test_output_that_is_not_finite_is_an_error_row(tmp_path: Path) -> None:
    broken = weights.load(f"random/{TINY}", device="cpu", image_size_px=32)
    broken.module.norm.weight.data[3] = float("nan")
    done = embed.embed(made(list(noise(2))), broken, tmp_path / "e.parquet")
    assert [reason for _, reason in done.failures] == ["the encoder's output is not finite"] * 2


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, encoder: weights.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "CHUNK", 8)
    pictures: list[np.ndarray | str] = [*noise(20), "torn", *noise(9, seed=1)]
    embed.embed(made(pictures), encoder, tmp_path / "whole.parquet", embed.Reading(batch_size=3))
    reads: list[int] = []

    def counting(data: source.Source, stop_at: int) -> source.Source:
        def read(row: int) -> np.ndarray:
            reads.append(row)
            if row >= stop_at:
                raise KeyboardInterrupt
            return data.read(row)

        return source.Source(
            rows=data.rows, read=read, parent=data.parent, settings={}, what=data.what
        )

    out = tmp_path / "stopped.parquet"
    one_at_a_time = embed.Reading(batch_size=3, workers=1)
    with pytest.raises(KeyboardInterrupt):
        embed.embed(counting(made(pictures), 27), encoder, out, one_at_a_time)
    assert not out.exists()
    finished = artifacts.Parts(out, artifacts.read_header(tmp_path / "whole.parquet")).done()
    assert finished and finished < {0, 1, 2, 3}
    reads.clear()
    embed.embed(counting(made(pictures), 99), encoder, out, one_at_a_time)
    assert reads == list(range(8 * len(finished), 30))
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.parquet", "whole.parquet"]


def test_rerun_is_up_to_date_and_other_settings_clash(
    tmp_path: Path, encoder: weights.Encoder
) -> None:
    data, out = made(list(noise(2))), tmp_path / "e.parquet"
    first = embed.embed(data, encoder, out)
    again = embed.embed(data, encoder, out, embed.Reading(batch_size=1))
    assert first.fresh and not again.fresh and again.record == first.record
    other = weights.load(f"random/{TINY}", device="cpu", image_size_px=48)
    with pytest.raises(errors.OutputClash, match=r"image_size_px=32 \(now 48\)"):
        embed.embed(data, other, out)
    seed = weights.load(f"random/{TINY}", device="cpu", image_size_px=32, seed=1)
    with pytest.raises(errors.OutputClash, match=f"encoder:{encoder.id}"):
        embed.embed(data, seed, out)
    assert embed.embed(data, seed, out, overwrite=True).record["id"] != first.record["id"]


def test_the_header_says_how_it_was_made(tmp_path: Path, encoder: weights.Encoder) -> None:
    embed.embed(made(list(noise(1))), encoder, tmp_path / "e.parquet")
    header = artifacts.read_header(tmp_path / "e.parquet", "embeddings")
    assert header.parents == ("images:0", f"encoder:{encoder.id}")
    assert header.settings == {
        "model": f"random/{TINY}",
        "embedding": "cls",
        "image_size_px": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "resize": "shorter side, bilinear with antialias, centre crop",
        "precision": "fp32",
    }


def test_reading_runs_ahead_by_two_batches_and_no_more(
    tmp_path: Path, encoder: weights.Encoder
) -> None:
    lock, state = threading.Lock(), {"read": 0, "most": 0}
    pictures = noise(40)
    seen = [0]

    def read(row: int) -> np.ndarray:
        with lock:
            state["read"] += 1
            state["most"] = max(state["most"], state["read"] - seen[0])
        return pictures[row]

    def progress(done: int, total: int) -> None:
        seen[0] = done
        assert total == 40

    data = made(list(pictures))
    data = source.Source(rows=data.rows, read=read, parent="images:0", settings={}, what="images")
    reading = embed.Reading(batch_size=4, workers=2)
    embed.embed(data, encoder, tmp_path / "e.parquet", reading, progress=progress)
    assert state["read"] == 40
    # Two batches ahead, one on the device, one not yet reported.
    assert 4 < state["most"] <= 16


def test_bf16_is_close_and_recorded(tmp_path: Path, encoder: weights.Encoder) -> None:
    half = weights.load(f"random/{TINY}", device="cpu", image_size_px=32, precision="bf16")
    assert half.id == encoder.id and half.settings()["precision"] == "bf16"
    pair = [e.encode(np.stack(noise(4))) for e in (half, encoder)]
    assert pair[0].dtype == torch.float32
    cosine = nn.functional.cosine_similarity(*pair)
    assert cosine.min() > 0.999 and not torch.equal(*pair)


@pytest.fixture
def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    def fail(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(weights.Encoder, "encode", fail)
    return fail


@pytest.mark.usefixtures("out_of_memory")
def test_a_batch_that_does_not_fit_names_a_smaller_one(
    tmp_path: Path, encoder: weights.Encoder
) -> None:
    with pytest.raises(errors.PathfmError, match="A batch of 6 images") as caught:
        embed.embed(made(list(noise(6))), encoder, tmp_path / "e.parquet")
    assert caught.value.hint == "--batch-size 3"
