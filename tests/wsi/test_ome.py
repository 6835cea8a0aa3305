import pytest

from pathfm_cli import errors
from pathfm_cli.wsi import ome

NAMESPACE = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def document(pixels: str, more: str = "", before: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<OME {NAMESPACE}>{more}'
        f'<Image ID="Image:0"><Pixels SizeX="300" SizeY="200" {pixels}/></Image></OME>'
    )


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.5"', (0.25, 0.5)),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.25"', (0.25, 0.25)),
        (
            'PhysicalSizeX="0.00025" PhysicalSizeXUnit="mm"'
            ' PhysicalSizeY="0.000025" PhysicalSizeYUnit="cm"',
            (0.25, 0.25),
        ),
        ('PhysicalSizeX="0.25" PhysicalSizeXUnit="\u03bcm" PhysicalSizeY="0.25"', (0.25, 0.25)),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1"', (0.0, 1.0)),
        ('PhysicalSizeX="wide"', (0.0, 0.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_physical_size_and_its_unit(attributes: str, expected: tuple[float, float]) -> None:
    (image,) = ome.parse(document(attributes), "s").images
    assert image.mpp == pytest.approx(expected)
    assert (image.width_px, image.height_px) == (300, 200)


def test_samples_planes_and_objective() -> None:
    text = document(
        'SizeC="3" SizeZ="4" SizeT="2" Type="uint8"',
        '<Instrument ID="I"><Objective ID="O" NominalMagnification="40"/></Instrument>',
    )
    found = ome.parse(text, "s")
    assert (found.images[0].size_c, found.images[0].planes) == (3, 8)
    assert found.images[0].pixel_type == "uint8"
    assert found.objective == 40.0


def test_names_of_labels() -> None:
    text = (
        f'<OME {NAMESPACE}><Image Name="s.svs"><Pixels SizeX="9" SizeY="8"><TiffData IFD="0"/>'
        '</Pixels></Image><Image Name="macro image"><Pixels SizeX="7" SizeY="6">'
        '<TiffData IFD="3"/></Pixels></Image></OME>'
    )
    found = ome.parse(text, "s")
    assert [image.label for image in found.images] == [False, True]
    assert found.label_ifds == {3}


BILLION_LAUGHS = '<!DOCTYPE OME [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE OME SYSTEM "file:///etc/passwd">'


@pytest.mark.parametrize("doctype", [BILLION_LAUGHS, EXTERNAL, "<!DOCTYPE OME>"])
def test_document_types_and_entities_are_refused(doctype: str) -> None:
    with pytest.raises(errors.SlideError, match="document type or an entity"):
        ome.parse(document("", before=doctype), "s")


@pytest.mark.parametrize(
    "text",
    ["<OME", "", "<OME></Image>", document('SizeC="many"'), document('PhysicalSizeX="1"')[:-9]],
)
def test_damaged_xml(text: str) -> None:
    with pytest.raises(errors.SlideError, match="s: its OME-XML cannot be read"):
        ome.parse(text, "s")


def test_too_much_xml() -> None:
    with pytest.raises(errors.SlideError, match="more than 16 MB"):
        ome.parse(" " * (ome.MAX_XML_BYTES + 1), "s")


def test_what_is_ome() -> None:
    assert ome.is_ome(document(""))
    assert not ome.is_ome("Aperio Image Library")
