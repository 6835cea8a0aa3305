"""What `segment` refuses before it reads a picture, and what it says it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathfm_cli import errors
from pathfm_cli.tasks import masks, segmentation


def test_bounds_of_numbers() -> None:
    assert segmentation.Training(lr=100.0).lr == 100.0
    for lr in (100.1, 1e38, float("inf"), -1.0):
        with pytest.raises(errors.UsageError, match="no learning rate above 0 and up to 100"):
            segmentation.Training(lr=lr)
    assert segmentation.Config(crops=1_000_000).crops == 1_000_000
    for crops in (0, 1_000_001):
        with pytest.raises(errors.UsageError, match="not from 1 to 1,000,000"):
            segmentation.Config(crops=crops)


def test_places_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "below").symlink_to(tmp_path / "file" / "folder")
    for out, error, message in (
        (tmp_path / "file" / "out", errors.Unwritable, "file is no folder"),
        (tmp_path / "below", errors.Unwritable, "file is no folder"),
        (tmp_path / "nowhere", errors.OutputClash, "a link that leads nowhere"),
        (tmp_path / "file", errors.OutputClash, "is a file"),
        (Path("-"), errors.UsageError, "stdout is none"),
    ):
        for overwrite in (False, True):
            with pytest.raises(error, match=message):
                segmentation.check_free(out, overwrite=overwrite)
    segmentation.check_free(tmp_path / "new" / "out", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_images_of_other_splits_are_counted() -> None:
    items = [
        masks.Item(str(i), Path("a"), Path("b"), s) for i, s in enumerate("train test".split())
    ]
    assert segmentation.left_out(items) == ()
    items += [masks.Item(f"v{i}", Path("a"), Path("b"), s) for i, s in enumerate(("val", "Test"))]
    assert segmentation.left_out(items) == ("2 images are left out: their split is Test, val",)
