"""PatchCamelyon's HDF5 files, made small."""

from pathlib import Path

import numpy as np
import pytest

from pathfm_cli import errors
from pathfm_cli.tasks.datasets import catalogue, pcam

h5py = pytest.importorskip("h5py")


def pcam_tree(root: Path, labels: dict[str, list[int]]) -> None:
    """Two files a split; the row is the grey value."""
    for split, values in labels.items():
        count = len(values)
        pixels = np.broadcast_to(np.arange(count)[:, None, None, None], (count, 96, 96, 3))
        with h5py.File(root / f"camelyonpatch_level_2_split_{split}_x.h5", "w") as file:
            file["x"] = pixels.astype(np.uint8)
        with h5py.File(root / f"camelyonpatch_level_2_split_{split}_y.h5", "w") as file:
            file["y"] = np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def test_pcam_reads_rows_of_three_splits(tmp_path: Path) -> None:
    pcam_tree(tmp_path, {"train": [0, 1, 1], "valid": [1], "test": [0, 1]})
    data = catalogue.open_task("pcam", tmp_path, partial=True)
    assert data.rows.select("id", "label", "split").rows() == [
        ("train/0", "no_tumor", "train"),
        ("train/1", "tumor", "train"),
        ("train/2", "tumor", "train"),
        ("val/0", "tumor", "val"),
        ("test/0", "no_tumor", "test"),
        ("test/1", "tumor", "test"),
    ]
    assert [int(data.read(row).max()) for row in range(6)] == [0, 1, 2, 0, 0, 1]
    assert data.read(0).shape == (96, 96, 3)


def test_pcam_lies_also_below_its_name(tmp_path: Path) -> None:
    (tmp_path / "pcam").mkdir()
    pcam_tree(tmp_path / "pcam", {"train": [0, 1], "valid": [1], "test": [0]})
    assert catalogue.open_task("pcam", tmp_path, partial=True).rows.height == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("label", "holds the label 2"),
        ("count", "has 2 images"),
        ("cut", "damaged or no HDF5"),
        ("absent", "is missing"),
        ("type", "not uint8"),
    ],
)
def test_damaged_pcam_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    pcam_tree(tmp_path, {"train": [0, 1], "valid": [1], "test": [0]})
    x, y = (tmp_path / f"camelyonpatch_level_2_split_train_{key}.h5" for key in "xy")
    if damage == "cut":
        x.write_bytes(x.read_bytes()[:100])
    elif damage == "absent":
        x.unlink()
    else:
        values = {"label": [0, 2], "count": [0, 1, 1], "type": [0, 1]}[damage]
        kind = np.int32 if damage == "type" else np.uint8
        with h5py.File(y, "w") as file:
            file["y"] = np.array(values, kind).reshape(-1, 1, 1, 1)
    with pytest.raises(errors.InputError, match=message):
        catalogue.open_task("pcam", tmp_path, partial=True)


def test_a_block_boundary_of_pcam(tmp_path: Path) -> None:
    count = pcam.BLOCK + 2
    pcam_tree(tmp_path, {"train": [0] * count})
    stack = pcam.Stack(tmp_path / "camelyonpatch_level_2_split_train_x.h5")
    rows = [pcam.BLOCK - 1, pcam.BLOCK, 3]
    assert [int(stack.read(row).max()) for row in rows] == [255, 0, 3]
