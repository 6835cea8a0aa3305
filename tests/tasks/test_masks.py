from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_cli import errors
from pathfm_cli.tasks import masks


def item(folder, image, label, name="a"):
    """An image and its label map as PNG files."""
    Image.fromarray(image).save(folder / f"{name}.png")
    Image.fromarray(label).save(folder / f"{name}-label.png")
    return masks.Item(name, folder / f"{name}.png", folder / f"{name}-label.png", "train")


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_windows_cover_and_stay_inside():
    assert masks.starts(1000, 224, 194) == [0, 194, 388, 582, 776]
    assert masks.starts(320, 224, 194) == [0, 96]
    assert masks.starts(418, 224, 194) == [0, 194]
    assert masks.starts(224, 224, 194) == [0]
    assert masks.starts(100, 224, 194) == [0]


def test_classes_are_kept_and_instances_become_foreground(tmp_path):
    label = np.array([[0, 1], [2, 3]], np.uint8)
    one = item(tmp_path, picture(2, 2), label)
    assert masks.read(one, "classes").label.tolist() == [[0, 1], [2, 3]]
    assert masks.read(one, "objects").label.tolist() == [[0, 1], [1, 1]]
    assert masks.largest(one) == 3


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_table_does_not_lead_out_of_its_folder(tmp_path, column):
    row = {"image": ["a.png"], "label": ["b.png"], "split": ["train"], "id": ["a"]}
    path = tmp_path / "t.csv"
    pl.DataFrame({**row, column: ["../secret.png"]}).write_csv(path)
    with pytest.raises(errors.UsageError, match="leads out of the table's folder"):
        masks.read_table(path)


def test_sixteen_bit_numbers_of_objects(tmp_path):
    label = np.array([[0, 256], [512, 65535]], np.uint16)
    one = item(tmp_path, picture(2, 2), label)
    assert masks.read(one, "objects").label.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(errors.UsageError, match="label 65535") as caught:
        masks.read(one, "classes")
    assert "--instances" in caught.value.hint


def test_palette_maps_hold_their_numbers_not_their_colours(tmp_path):
    one = item(tmp_path, picture(2, 2), np.zeros((2, 2), np.uint8))
    palette = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).convert("P")
    palette.putpalette([255, 255, 255, 10, 20, 30, 200, 0, 0] + [0] * 759)
    palette.save(one.label)
    assert masks.read(one, "classes").label.tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize("what", ["size", "colour", "cut", "absent", "text"])
def test_a_broken_label_map_is_a_slide_error(tmp_path, what):
    one = item(tmp_path, picture(4, 4), np.zeros((3 if what == "size" else 4, 4), np.uint8))
    if what == "colour":
        Image.fromarray(picture(4, 4)).save(one.label)
    elif what == "cut":
        one.label.write_bytes(one.label.read_bytes()[:45])
    elif what == "absent":
        one.label.unlink()
    elif what == "text":
        one.label.write_text("no image")
    with pytest.raises(errors.SlideError):
        masks.read(one, "objects")


def test_crops_are_where_they_say(tmp_path):
    image, label = picture(10, 12), np.arange(120, dtype=np.uint8).reshape(10, 12) % 60
    whole = masks.Labelled(image, label)
    found = masks.cut(whole, 0.5, 1.0, 4)
    np.testing.assert_array_equal(found.image, image[3:7, 8:12])
    np.testing.assert_array_equal(found.label, label[3:7, 8:12])
    assert masks.cut(whole, 0.0, 0.0, 4).label[0].tolist() == [0, 1, 2, 3]


def test_beyond_a_small_image_is_white_and_ignored():
    whole = masks.Labelled(picture(2, 3), np.ones((2, 3), np.uint8))
    found = masks.cut(whole, 0.7, 0.2, 4)
    expected = [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4, [255] * 4]
    assert found.label.tolist() == expected
    assert (found.image[found.label == 255] == 255).all()
    np.testing.assert_array_equal(found.image[:2, :3], whole.image)


def test_random_crops_are_a_function_of_seed_and_index(tmp_path):
    items = [item(tmp_path, picture(9, 9), np.full((9, 9), i, np.uint8), str(i)) for i in range(3)]
    all_crops = [masks.crop_of(i, 3, seed=4) for i in range(300)]
    assert all_crops[:50] == [masks.crop_of(i, 3, seed=4) for i in range(50)]
    assert all_crops != [masks.crop_of(i, 3, seed=5) for i in range(300)]
    counts = np.bincount([chosen for chosen, _, _ in all_crops])
    assert counts.min() > 70
    found = list(masks.random_crops(items, 300, 4, 4, "classes"))
    assert np.bincount([int(crop.label[0, 0]) for crop in found]).tolist() == counts.tolist()


def test_crops_of_a_broken_image_are_missing_and_it_is_named(tmp_path):
    items = [item(tmp_path, picture(9, 9), np.zeros((9, 9), np.uint8), str(i)) for i in range(2)]
    items[0].image.write_text("no image")
    found = list(masks.random_crops(items, 20, 4, 0, "objects"))
    broken = [entry for entry in found if not isinstance(entry, masks.Labelled)]
    assert broken == [(items[0], "the file is no image that can be read")]
    assert len(found) - 1 == sum(masks.crop_of(i, 2, 0)[0] == 1 for i in range(20))


def table(folder, **columns):
    pl.DataFrame(columns).write_csv(folder / "index.csv")
    return folder / "index.csv"


def test_table(tmp_path):
    path = table(
        tmp_path,
        id=["x/1", "2"],
        image=["i/1.png", "i/2.png"],
        label=["l/1", "l/2"],
        split=["a", "b"],
    )
    first, second = masks.read_table(path)
    assert first == masks.Item("x/1", tmp_path / "i/1.png", tmp_path / "l/1", "a")
    assert (first.file_name, second.file_name) == ("x_1.png", "2.png")
    nameless = table(tmp_path, image=["i/1.png"], label=["l"], split=["a"])
    assert masks.read_table(nameless)[0].id == "i/1.png"
    assert masks.Item("../../up", tmp_path, tmp_path, "").file_name == "_.._up.png"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a"], "split": ["train"]}, "no column label"),
        ({"image": ["a", "a"], "label": ["l", "l"], "split": ["t", "t"]}, "two images of one name"),
        ({"image": ["a", None], "label": ["l", "l"], "split": ["t", "t"]}, "empty cells"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, columns, message):
    with pytest.raises(errors.UsageError, match=message):
        masks.read_table(table(tmp_path, **columns))


def test_the_digest_follows_files_and_rows(tmp_path):
    one = item(tmp_path, picture(2, 2), np.zeros((2, 2), np.uint8))
    before = masks.digest([one])
    assert before == masks.digest([one])
    assert before != masks.digest([masks.Item(one.id, one.image, one.label, "test")])
    Image.fromarray(picture(3, 3)).save(one.image)
    assert before != masks.digest([one])


def test_the_digest_follows_the_masks_in_a_folder(tmp_path):
    (tmp_path / "masks").mkdir()
    one = masks.Item("a", tmp_path / "a.png", tmp_path / "masks", "train")
    (tmp_path / "masks" / "0.png").write_bytes(b"0")
    before = masks.digest([one])
    (tmp_path / "masks" / "0.png").write_bytes(b"00")
    assert masks.digest([one]) != before


def tree(folder):
    for split in ("train", "test"):
        for part in ("images", "labels"):
            (folder / split / part).mkdir(parents=True)
        Image.fromarray(picture(4, 4)).save(folder / split / "images" / "a.png")
        np.save(folder / split / "labels" / "a.npy", np.eye(4, dtype=np.uint8))
    return folder


def test_a_folder_of_images_and_labels_with_its_classes(tmp_path):
    tree(tmp_path)
    Image.fromarray(picture(4, 4)).save(tmp_path / "train" / "images" / "b.tif")
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "train" / "labels" / "b.png")
    (tmp_path / "train" / "images" / "notes.txt").write_text("no image")
    (tmp_path / "classes.txt").write_text("background\n\n gland \n")
    (tmp_path / "valid" / "images").mkdir(parents=True)
    (tmp_path / ".hidden").write_text("")
    for name in ("b.gif", "c.png"):
        (tmp_path / "train" / "labels" / name).write_text("")
    items, classes, left = masks.read_folder(tmp_path)
    assert left == ("valid", "train/labels/b.gif", "train/images/notes.txt", "train/labels/c.png")
    assert [(one.id, one.label.name, one.split) for one in items] == [
        ("train/a.png", "a.npy", "train"),
        ("train/b.tif", "b.png", "train"),
        ("test/a.png", "a.npy", "test"),
    ]
    assert classes == ("background", "gland")
    assert masks.read(items[0], "classes").label.tolist() == np.eye(4).tolist()
    (tmp_path / "classes.txt").unlink()
    assert masks.read_folder(tmp_path)[1] == ()


def test_a_folder_that_cannot_be_used(tmp_path):
    tree(tmp_path)
    (tmp_path / "test" / "labels" / "a.png").write_bytes(b"")
    with pytest.raises(errors.InputError, match="a.png has 2 label maps"):
        masks.read_folder(tmp_path)
    for name in ("a.png", "a.npy"):
        (tmp_path / "test" / "labels" / name).unlink()
    with pytest.raises(errors.InputError, match="a.png has no label maps"):
        masks.read_folder(tmp_path)
    (tmp_path / "test" / "labels").rmdir()
    with pytest.raises(errors.InputError, match="has no folder test/labels"):
        masks.read_folder(tmp_path)


@pytest.mark.parametrize("names", [[], ["background"], ["a", "a"], ["a", ""], ["a"] * 65])
def test_names_that_are_no_classes(names):
    with pytest.raises(errors.UsageError):
        masks.check_classes(names)


def test_numbers_below_zero_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[3, -1], [0, 2]], dtype=np.int16))
    one = masks.Item("a", tmp_path / "a.png", tmp_path / "a.npy", "train")
    with pytest.raises(errors.UsageError, match="a.npy holds the label -1; classes are 0 to 63"):
        masks.largest(one)


def test_names_too_long_for_a_file_and_empty_cells(tmp_path):
    table = tmp_path / "index.csv"
    table.write_text(f"id,image,label,split\n{'x' * 196},a.png,b.png,train\n")
    assert len(masks.read_table(table)[0].file_name) == 200
    table.write_text(f"id,image,label,split\n{'x' * 197},a.png,b.png,train\n")
    with pytest.raises(errors.UsageError, match="too long for a file: xxx"):
        masks.read_table(table)
    table.write_text("id,image,label,split\na,a.png,b.png,train\nb,,b.png,test\n")
    with pytest.raises(errors.UsageError, match="has empty cells in image[.]$"):
        masks.read_table(table)
