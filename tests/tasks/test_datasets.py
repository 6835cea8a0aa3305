"""Public data sets in the layout their authors publish, with tiny images."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy import io as scipy_io

from pathfm_cli import errors
from pathfm_cli.tasks import typemap
from pathfm_cli.tasks.datasets import bach, catalogue

SIDE_PX = 8


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE_PX, SIDE_PX, 3), value, np.uint8)).save(path)


def bach_tree(root: Path) -> None:
    """All 400 names; the number in the name is the grey value."""
    prefixes = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
    for label, prefix in prefixes.items():
        for number in range(1, 101):
            image(root / bach.PHOTOS / label / f"{prefix}{number:03}.tif", number)


def consep_tree(root: Path, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        (root / split / "Labels").mkdir(parents=True)
        for number in range(1, count + 1):
            name = f"{split.lower()}_{number}"
            image(root / split / "Images" / f"{name}.png")
            types = np.arange(8, dtype=np.float64).reshape(2, 4)
            scipy_io.savemat(root / split / "Labels" / f"{name}.mat", {"type_map": types})


def test_bach_is_split_by_patient_as_published(tmp_path: Path) -> None:
    bach_tree(tmp_path)
    data = catalogue.open_task("bach", tmp_path, partial=False)
    counts = dict(data.rows.group_by("split", "label").len().select("split", "len").rows())
    assert data.rows.height == 400 and set(counts) == {"train", "test"}
    tested = data.rows.filter(split="test").group_by("label").len().sort("label").rows()
    assert tested == [("Benign", 48), ("InSitu", 30), ("Invasive", 31), ("Normal", 23)]
    split = dict(data.rows.select("id", "split").rows())
    for name, expected in {
        "Benign/b041": "train",
        "Benign/b042": "test",
        "Benign/b060": "train",
        "Benign/b090": "test",
        "InSitu/is039": "train",
        "InSitu/is069": "test",
        "Invasive/iv059": "train",
        "Invasive/iv073": "test",
        "Normal/n045": "train",
        "Normal/n046": "test",
        "Normal/n069": "train",
    }.items():
        assert split[f"{bach.PHOTOS}/{name}.tif"] == expected, name
    row = data.rows["id"].to_list().index(f"{bach.PHOTOS}/Invasive/iv073.tif")
    assert data.read(row).tolist() == np.full((SIDE_PX, SIDE_PX, 3), 73).tolist()
    assert data.settings == {"task": "bach", "classes": ["Benign", "InSitu", "Invasive", "Normal"]}


def test_what_is_missing_is_said_and_partial_goes_on(tmp_path: Path) -> None:
    bach_tree(tmp_path)
    (tmp_path / bach.PHOTOS / "Normal" / "n046.tif").unlink()
    with pytest.raises(errors.InputError, match=r"test has 131 images, not 132") as caught:
        catalogue.open_task("bach", tmp_path, partial=False)
    assert caught.value.hint == f"pathfm tasks bach --download --accept-licence --data {tmp_path}"
    data = catalogue.open_task("bach", tmp_path, partial=True)
    assert data.rows.height == 399 and data.settings["partial"] is True
    assert "scores do not compare" in data.notes[-1]


def test_an_image_that_changes_makes_other_data(tmp_path: Path) -> None:
    bach_tree(tmp_path)
    before = catalogue.open_task("bach", tmp_path, partial=False).parent
    assert catalogue.open_task("bach", tmp_path, partial=False).parent == before
    with (tmp_path / bach.PHOTOS / "Benign" / "b001.tif").open("ab") as file:
        file.write(b"\0")
    assert catalogue.open_task("bach", tmp_path, partial=False).parent != before


def test_crc_has_a_folder_a_split_and_a_class(tmp_path: Path) -> None:
    for folder, label in [("NCT-CRC-HE-100K", "TUM"), ("NCT-CRC-HE-100K", "ADI")]:
        image(tmp_path / folder / label / f"{label}-AAAA.tif")
    image(tmp_path / "CRC-VAL-HE-7K" / "STR" / "STR-TCGA-A.tif", 9)
    data = catalogue.open_task("crc", tmp_path, partial=True)
    assert data.rows.select("label", "split").rows() == [
        ("ADI", "train"),
        ("TUM", "train"),
        ("STR", "test"),
    ]
    assert data.read(2).max() == 9
    facts = catalogue.find("crc").facts
    assert (facts.total("train"), facts.total("test")) == (100_000, 7_180)
    assert facts.classes == ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")


def test_mhist_reads_its_table(tmp_path: Path) -> None:
    rows = [("MHIST_a.png", "SSA", 6, "train"), ("MHIST_b.png", "HP", 1, "test")]
    columns = [
        "Image Name",
        "Majority Vote Label",
        "Number of Annotators who Selected SSA (Out of 7)",
        "Partition",
    ]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(tmp_path / "annotations.csv")
    for number, (name, *_) in enumerate(rows):
        image(tmp_path / "images" / name, number)
    data = catalogue.open_task("mhist", tmp_path, partial=True)
    assert data.rows.rows() == [
        ("images/MHIST_a.png", "SSA", "train"),
        ("images/MHIST_b.png", "HP", "test"),
    ]
    assert data.settings["classes"] == ["SSA", "HP"]
    assert data.read(1).max() == 1
    table = (tmp_path / "annotations.csv").read_text()
    (tmp_path / "annotations.csv").write_text(table.replace("MHIST_b", "../MHIST_b"))
    with pytest.raises(errors.InputError, match="no file name"):
        catalogue.open_task("mhist", tmp_path, partial=True)


def test_consep_pairs_images_with_label_maps(tmp_path: Path) -> None:
    consep_tree(tmp_path, {"Train": 27, "Test": 14})
    dataset = catalogue.find("consep")
    items, notes = dataset.items(tmp_path)  # type: ignore[attr-defined]
    assert notes == ()
    assert [sum(item.split == split for item in items) for split in ("train", "test")] == [27, 14]
    assert items[0].label == tmp_path / "Train" / "Labels" / f"{items[0].id}.mat"
    # Types 3, 4 are epithelial and 5, 6, 7 spindle-shaped (paper IV-A).
    assert typemap.read(items[0].label).tolist() == [[0, 1, 2, 3], [3, 4, 4, 4]]
    items[-1].image.unlink()
    few, notes = dataset.items(tmp_path, partial=True)  # type: ignore[attr-defined]
    assert len(few) == 40
    assert notes == ("consep is not complete: test has 13 images, not 14; scores do not compare",)
    items[0].label.unlink()
    with pytest.raises(errors.InputError, match="has no label map train_1.mat"):
        dataset.items(tmp_path)  # type: ignore[attr-defined]


def test_breakhis_knows_patients_from_names(tmp_path: Path) -> None:
    folder = tmp_path / "BreaKHis_v1" / "histology_slides" / "breast"
    for name, place in {
        "SOB_B_TA-14-16184CD-40-001.png": "benign/SOB/tubular_adenoma/SOB_B_TA_14-16184CD/40X",
        "SOB_M_DC-14-2523-40-010.png": "malignant/SOB/ductal_carcinoma/SOB_M_DC_14-2523/40X",
        "SOB_M_DC-14-2523-100-010.png": "malignant/SOB/ductal_carcinoma/SOB_M_DC_14-2523/100X",
        "SOB_M_LC-14-12204-40-001.png": "malignant/SOB/lobular_carcinoma/SOB_M_LC_14-12204/40X",
    }.items():
        image(folder / place / name)
    rows = catalogue.open_task("breakhis", tmp_path, partial=True).rows
    assert rows.select("label", "split", "group").rows() == [
        ("DC", "train", "2523"),
        ("TA", "test", "16184CD"),
    ]


@pytest.mark.parametrize("name", ["bach", "crc", "mhist", "pcam", "consep", "breakhis"])
def test_an_absent_data_set_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    facts = catalogue.find(name).facts
    with pytest.raises(errors.InputError, match="is missing") as caught:
        catalogue.open_task(name, tmp_path, partial=False)
    assert facts.licence in str(caught.value)
    assert caught.value.hint == facts.hint(tmp_path)


def test_names_places_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.UsageError) as caught:
        catalogue.find("bcah")
    assert caught.value.hint == "did you mean bach?"
    with pytest.raises(errors.UsageError, match="--label does not go with --task"):
        catalogue.open_task("bach", tmp_path, partial=False, refused=["--label"])
    monkeypatch.setenv("PATHFM_DATA", "/sets")
    assert catalogue.locate("bach", None) == Path("/sets/bach")
    assert catalogue.locate("bach", tmp_path) == tmp_path
    monkeypatch.delenv("PATHFM_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", "/home/me/data")
    assert catalogue.locate("bach", None) == Path("/home/me/data/pathfm/bach")
