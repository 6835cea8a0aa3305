from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io

from pathfm_cli import errors
from pathfm_cli.tasks import labelmaps

OBJECTS = np.array([[0, 7, 7], [300, 300, 0]])


def test_arrays_are_read_as_they_are(tmp_path):
    np.save(tmp_path / "a.npy", OBJECTS)
    assert labelmaps.raw(tmp_path / "a.npy", "objects", (2, 3)).tolist() == OBJECTS.tolist()
    assert labelmaps.read(tmp_path / "a.npy", "objects", (2, 3)).tolist() == [[0, 1, 1], [1, 1, 0]]
    with pytest.raises(errors.UsageError, match="holds the label 300"):
        labelmaps.read(tmp_path / "a.npy", "classes", (2, 3))
    with pytest.raises(errors.SlideError, match="differ in size: 9 x 2 and 3 x 2 px"):
        labelmaps.read(tmp_path / "a.npy", "objects", (2, 9))


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3), np.float32), np.zeros((1, 2, 3), np.uint8), np.array([[None]], object)],
    ids=["float", "three axes", "pickled"],
)
def test_arrays_that_are_no_label_maps(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(errors.SlideError):
        labelmaps.raw(tmp_path / "a.npy", "objects", (2, 3))


def test_a_header_that_lies_about_its_size_allocates_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4), np.uint8))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(4, 4)", b"(1000000, 1000000)")
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(errors.SlideError, match="cannot be decoded"):
        labelmaps.raw(tmp_path / "a.npy", "objects", (4, 4))


def test_matlab_maps_hold_types_and_objects(tmp_path):
    path = tmp_path / "a.mat"
    types = np.array([[0, 4, 4], [7, 7, 0]])
    scipy_io.savemat(path, {"type_map": types, "inst_map": OBJECTS.astype(float)})
    assert labelmaps.read(path, "classes", (2, 3)).tolist() == [[0, 3, 3], [4, 4, 0]]
    assert labelmaps.raw(path, "objects", (2, 3)).tolist() == OBJECTS.tolist()
    scipy_io.savemat(path, {"type_map": types})
    with pytest.raises(errors.SlideError, match="no inst_map"):
        labelmaps.raw(path, "objects", (2, 3))


def test_a_folder_of_one_mask_an_object(tmp_path):
    for name, place in (("b.png", np.s_[:2, :2]), ("a.png", np.s_[1:, 1:])):
        mask = np.zeros((3, 3), np.uint8)
        mask[place] = 255
        Image.fromarray(mask).save(tmp_path / name)
    found = labelmaps.raw(tmp_path, "objects", (3, 3))
    assert found.tolist() == [[2, 2, 0], [2, 2, 1], [0, 1, 1]]
    with pytest.raises(errors.SlideError, match="as large as its image"):
        labelmaps.raw(tmp_path, "objects", (4, 3))
    with pytest.raises(errors.UsageError, match="holds objects, no classes"):
        labelmaps.raw(tmp_path, "classes", (3, 3))


REGION = "<Region><Vertices>{}</Vertices></Region>"
CORNERS = '<Vertex X="{}" Y="{}" Z="0"/>'


def outline(*corners):
    return REGION.format("".join(CORNERS.format(x, y) for x, y in corners))


def test_outlines_of_monuseg(tmp_path):
    path = tmp_path / "a.xml"
    square, line = outline((1, 1), (3, 1), (3, 2), (1, 2)), outline((0, 0), (4, 4))
    corner = outline((3.0, 2.0), (9, 2), (9, 9), (3, 9))
    path.write_text(f"<Annotations><Regions>{square}{line}{corner}</Regions></Annotations>")
    found = labelmaps.raw(path, "objects", (4, 5))
    assert found.tolist() == [[0] * 5, [0, 1, 1, 1, 0], [0, 1, 1, 2, 2], [0, 0, 0, 2, 2]]


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxxxxxx">]><Annotations>&x;</Annotations>'


@pytest.mark.parametrize(
    "data",
    [
        b"<Annotations>",
        BOMB.encode(),
        BOMB.encode("utf-16"),
        b'<!DOCTYPE a SYSTEM "x.dtd">' + outline((1, 1), (3, 1), (3, 3)).encode(),
        outline((1, 1), (2, "nan"), (3, 3)).encode(),
        outline((1, 1), (2, 1e30), (3, 3)).encode(),
        b'<Region><Vertex X="1"/></Region>',
    ],
    ids=["cut", "entity", "entity utf-16", "document type", "nan", "far", "no Y"],
)
def test_outlines_that_cannot_be_read(tmp_path, data):
    (tmp_path / "a.xml").write_bytes(data)
    with pytest.raises(errors.SlideError, match="cannot be decoded"):
        labelmaps.raw(tmp_path / "a.xml", "objects", (4, 5))


def test_boundaries_lie_inside_the_objects():
    objects = np.zeros((9, 14), np.int64)
    objects[1:8, 1:8] = 5
    objects[1:8, 8:] = 6  # touches its neighbour, and the edge of the image
    found = labelmaps.boundaries(objects)
    assert ((found > 0) == (objects > 0)).all()
    inside = np.zeros((9, 14), bool)
    inside[3:6, 3:6] = inside[3:6, 10:] = True
    assert ((found == 1) == inside).all()


def test_an_absent_map(tmp_path):
    with pytest.raises(errors.SlideError, match="does not exist"):
        labelmaps.raw(tmp_path / "a.png", "classes", (1, 1))
