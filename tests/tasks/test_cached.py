"""Embeddings beside a data set: made once, and again when the data or the encoder differ."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pathfm_cli import errors
from pathfm_cli.model import weights
from pathfm_cli.tasks import cached, embed, source


def data(parent: str = "task:made:0123456789ab") -> source.Source:
    rows = pl.DataFrame({"id": ["a", "b"], "label": ["x", "y"], "split": ["train", "test"]})
    return source.Source(
        rows=rows,
        read=lambda row: np.full((32, 32, 3), 100 * row, np.uint8),
        parent=parent,
        settings={"task": "made"},
        what="images",
    )


@pytest.fixture(scope="module")
def encoder() -> weights.Encoder:
    return weights.load("random/vit_tiny_patch16_224", device="cpu", image_size_px=32)


def test_the_second_call_reads(tmp_path: Path, encoder: weights.Encoder) -> None:
    first = cached.embeddings(data(), encoder, tmp_path, embed.Reading())
    expected = tmp_path / "pathfm-embeddings" / f"0123456789ab-{encoder.id}-fp32.parquet"
    assert first.fresh and first.record["path"] == str(expected)
    again = cached.embeddings(data(), encoder, tmp_path, embed.Reading())
    assert not again.fresh and again.record == first.record


def test_other_data_or_another_encoder_is_another_file(
    tmp_path: Path, encoder: weights.Encoder
) -> None:
    other = weights.load("random/vit_tiny_patch16_224", seed=1, device="cpu", image_size_px=32)
    for opened, network in [
        (data(), encoder),
        (data("task:made:ffffffffffff"), encoder),
        (data(), other),
    ]:
        assert cached.embeddings(opened, network, tmp_path, embed.Reading()).fresh
    assert len(list((tmp_path / "pathfm-embeddings").iterdir())) == 3


def test_a_folder_that_cannot_be_made(tmp_path: Path, encoder: weights.Encoder) -> None:
    (tmp_path / "pathfm-embeddings").write_text("in the way")
    with pytest.raises(errors.PathfmError, match="cannot be made") as caught:
        cached.embeddings(data(), encoder, tmp_path, embed.Reading())
    assert "-o FILE" in str(caught.value.hint)
