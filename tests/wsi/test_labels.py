"""Label and macro images are no levels, however they are named, laid out and ordered."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from pathfm_cli import errors
from pathfm_cli.data import cohort, identifiers, index
from pathfm_cli.wsi import labels, store, vendor

SCAN, LABEL = 120, 255
APERIO = "Aperio Image Library v1\n1024x1024 [0,0]|AppMag = 40|MPP = 0.25|Barcode = 7"
OME_IMAGE = (
    '<Image Name="{name}"><Pixels SizeX="{side}" SizeY="{side}" SizeC="3" SizeZ="1" SizeT="1" '
    'Type="uint8" PhysicalSizeX="0.25" PhysicalSizeY="0.25">{data}</Pixels></Image>'
)


def ome(side: int, data: str = "", label: str = "label") -> str:
    return (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        + OME_IMAGE.format(name="scan", side=1024, data="")
        + OME_IMAGE.format(name=label, side=side, data=data)
        + "</OME>"
    )


def write(path: Path, images: list[tuple[int, int, str | None, int]]) -> None:
    """Write images of (side in px, grey value, description, NewSubfileType), all in tiles."""
    with tifffile.TiffWriter(path) as file:
        for side, grey, description, kind in images:
            file.write(
                np.full((side, side, 3), grey, np.uint8),
                tile=(64, 64),
                photometric="rgb",
                compression="zlib",
                resolution=(1e4 / 0.25, 1e4 / 0.25),
                resolutionunit="CENTIMETER",
                description=description,
                subfiletype=kind,
                metadata=None,
            )


FILES = {
    "OME, half": [(1024, SCAN, ome(512), 0), (512, LABEL, None, 0)],
    "OME, larger": [(1024, SCAN, ome(1280), 0), (1280, LABEL, None, 0)],
    "OME, by directory": [
        (1024, SCAN, ome(99, '<TiffData IFD="1"/>'), 0),
        (512, LABEL, None, 0),
    ],
    "macro by kind, larger": [(1024, SCAN, "scan", 0), (1280, LABEL, None, 9)],
    "reduced, larger": [(1024, SCAN, "scan", 0), (1280, LABEL, None, 1)],
    "Slide label": [(1024, SCAN, "scan", 0), (512, LABEL, "Slide label", 0)],
    "SlideLabel": [(1024, SCAN, "scan", 0), (512, LABEL, "SlideLabel", 1)],
    "overview": [(1024, SCAN, "scan", 0), (512, LABEL, "the overview image", 0)],
    "thumbnail": [(1024, SCAN, "scan", 0), (512, LABEL, "thumbnail", 0)],
    "barcode": [(1024, SCAN, "scan", 0), (512, LABEL, "slide_barcode", 0)],
    "XML": [(1024, SCAN, "scan", 0), (512, LABEL, "<image><type>LABELIMAGE</type></image>", 0)],
    "JSON": [(1024, SCAN, "scan", 0), (512, LABEL, '{"name": "label"}', 0)],
    "Aperio, third line": [(1024, SCAN, APERIO, 0), (512, LABEL, "Aperio x\n5x5\nlabel 5x5", 0)],
    "Aperio, first line": [(1024, SCAN, APERIO, 0), (512, LABEL, "Aperio x label 512x512", 0)],
    "Aperio, first image": [
        (512, LABEL, "Aperio x\nlabel 512x512|MPP = 0.25", 0),
        (1024, SCAN, APERIO, 0),
    ],
}


@pytest.mark.parametrize("images", FILES.values(), ids=list(FILES))
def test_labels_are_no_levels(tmp_path: Path, images: list) -> None:
    path = tmp_path / "s.tif"
    write(path, images)
    index.index([str(path)], tmp_path / "s.parquet")
    found = cohort.open_cohort(tmp_path / "s.parquet")
    (slide,) = found.slides
    assert [level.width_px for level in slide.levels] == [1024]
    for mpp in (0.25, 0.5, 1.0):
        assert (found.reader.read_patch(slide, 0, 0, mpp, 64) == SCAN).all()


@pytest.mark.parametrize("name", ["OME, half", "macro by kind, larger", "SlideLabel", "XML"])
def test_labels_are_a_finding(tmp_path: Path, name: str) -> None:
    write(tmp_path / "s.tif", FILES[name])
    assert identifiers.LABEL in identifiers.find(str(tmp_path / "s.tif"))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([(512, LABEL, "macro", 0)], "only images that are a label"),
        ([(512, LABEL, None, 9)], "only images that are a label"),
        ([(512, LABEL, "Aperio x\nlabel 9x9", 1)], "only images that are a label"),
        ([(512, LABEL, ome(512, label="overview"), 0)], "only images that are a label"),
    ],
)
def test_a_file_of_labels_is_refused(tmp_path: Path, images: list, sentence: str) -> None:
    write(tmp_path / "s.tif", images)
    with pytest.raises(errors.SlideError, match=sentence):
        vendor.describe(store.Source.open(str(tmp_path / "s.tif")), "s")


def test_a_larger_mask_is_not_level_0(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    write(path, [(1024, SCAN, "scan", 0), (1280, LABEL, None, 8)])
    kind = b"\xfe\0\4\0\1\0\0\0%c\0\0\0"  # NewSubfileType, one LONG; tifffile writes no mask
    data = path.read_bytes()
    assert data.count(kind % 8) == 1
    path.write_bytes(data.replace(kind % 8, kind % 4))
    found = vendor.describe(store.Source.open(str(path)), "s")
    assert [plane.width_px for plane in found.planes] == [1024]


VIPS = (
    '<image xmlns="http://www.vips.ecs.soton.ac.uk/dzsave"><properties><property>'
    "<name>slide-associated-images</name><value>label, macro</value></property><property>"
    "<name>openslide.associated.label.width</name><value>387</value></property></properties>"
    "</image>"
)


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (None, None, 1),
        (None, None, 0),
        (VIPS, None, 1),
        ("CD68, macrophages; immunolabelled", None, 1),
        ("Barcode: 7", "Barcode: 7", 1),
        (APERIO, APERIO.replace("[0,0]", "-> 512x512"), 0),
        (APERIO + "|Title = macro dissection", "Aperio x\n1024x1024 -> 512x512", 1),
    ],
)
def test_levels_stay_levels(tmp_path: Path, first: str, second: str, kind: int) -> None:
    write(tmp_path / "s.tif", [(1024, SCAN, first, 0), (512, SCAN, second, kind)])
    found = vendor.describe(store.Source.open(str(tmp_path / "s.tif")), "s")
    assert [plane.width_px for plane in found.planes] == [1024, 512]


def test_where_every_image_is_reduced_the_largest_is_level_0(tmp_path: Path) -> None:
    write(tmp_path / "s.tif", [(512, SCAN, None, 1), (1024, SCAN, None, 1)])
    found = vendor.describe(store.Source.open(str(tmp_path / "s.tif")), "s")
    assert [plane.width_px for plane in found.planes] == [1024, 512]


def test_words_are_searched_far_into_a_description(tmp_path: Path) -> None:
    write(tmp_path / "s.tif", [(1024, SCAN, None, 0), (512, LABEL, "x\n" * 8000 + "label", 0)])
    found = vendor.describe(store.Source.open(str(tmp_path / "s.tif")), "s")
    assert [plane.width_px for plane in found.planes] == [1024]
    assert labels.LABEL_BYTES == 16384
