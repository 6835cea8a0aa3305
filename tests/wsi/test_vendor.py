"""What a slide is: against openslide on real files, and spelled out on small ones."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from ramps import MakePyramid, ramp

from pathfm_cli import errors
from pathfm_cli.wsi import store, vendor

OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>'
    '<Pixels SizeX="1024" SizeY="768" SizeC="{c}" SizeZ="{z}" Type="uint8" PhysicalSizeX="0.25" '
    'PhysicalSizeY="0.25"/></Image></OME>'
)


def describe(path: Path) -> vendor.Description:
    return vendor.describe(store.Source.open(str(path)), path.name)


def test_real_slides_have_openslides_levels_and_mpp(slides_folder: Path) -> None:
    for path in sorted(slides_folder.glob("*.svs")) + sorted(slides_folder.glob("*pyramid.tif")):
        found = describe(path)
        with openslide.OpenSlide(path) as slide:
            sizes = tuple((plane.width_px, plane.height_px) for plane in found.planes)
            assert sizes == slide.level_dimensions, path
            expected = slide.properties.get("openslide.mpp-x")
            assert found.resolution.mpp == (pytest.approx(float(expected)) if expected else None)
            objective = slide.properties.get("openslide.objective-power")
            assert found.objective == (float(objective) if objective else None)
            assert found.vendor == slide.properties["openslide.vendor"]


@pytest.mark.parametrize(
    ("name", "codec", "source"),
    [
        ("BS21_stomach_HE_10x_rgbjpeg.svs", "jpeg-rgb", "aperio"),
        ("BS27_duodenum_HE_40x_ycc422.svs", "jpeg-ycbcr", "aperio"),
        ("TCGA-CR-7395-01A-01-TS1.svs", "jp2k-rgb", None),
        ("BS25_duodenumNET_HE_10x.ome.tif", "jpeg-ycbcr", "ome"),
        ("BS19_liver_HE_20x_pyramid.tif", "jpeg-ycbcr", "resolution-tag"),
    ],
)
def test_codec_and_mpp_source(slides_folder: Path, name: str, codec: str, source: str) -> None:
    found = describe(slides_folder / name)
    assert found.planes[0].codec == codec
    assert found.resolution.source == source


def test_ome_levels_come_from_subifds(slides_folder: Path) -> None:
    found = describe(slides_folder / "BS25_duodenumNET_HE_10x.ome.tif")
    sizes = [(plane.width_px, plane.height_px) for plane in found.planes]
    assert sizes == [(6673, 9806), (3336, 4903), (1668, 2451), (834, 1225)]
    assert found.resolution.mpp == pytest.approx(1.0112)
    assert found.objective == 10.0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken.svs", "a file of unknown type (it begins with b'IJrE')"),
        ("fluorescence-DAPI.ndpi", "a Hamamatsu NDPI, which is not supported"),
        ("XYC.png", "a PNG image, not a TIFF slide"),
        ("openslide-fixtures/boxes_0.dcm", "a DICOM file, not a TIFF slide"),
        ("openslide-fixtures/unopenable.tiff", "TIFF compression 52479 is not supported"),
    ],
)
def test_foreign_files_are_named(formats_folder: Path, name: str, sentence: str) -> None:
    with pytest.raises(errors.SlideError) as caught:
        describe(formats_folder / name)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tile": None}, "a TIFF in strips, not in tiles"),
        ({"planarconfig": "separate"}, "separate planes"),
        ({"compression": "packbits"}, "compression 32773 is not supported"),
        ({"compression": "zlib", "software": "Philips DP v1.0"}, "a Philips TIFF"),
        ({"extratags": [(65420, "I", 1, 1, True)]}, "a Hamamatsu NDPI"),
        ({"extratags": [(700, "B", 8, b"<iScan />"[:8], True)]}, "a Ventana BIF"),
        (
            {"description": "<scn xmlns='http://www.leica-microsystems.com/scn/2010/10/01'/>"},
            "a Leica SCN",
        ),
    ],
)
def test_other_tiffs_are_refused(make_pyramid: MakePyramid, options, sentence: str) -> None:
    if "planarconfig" in options:
        options = {**options, "factors": ()}
        path = make_pyramid(**options)
        tifffile.imwrite(
            path,
            np.moveaxis(ramp((128, 128), 1), -1, 0),
            tile=(64, 64),
            photometric="rgb",
            planarconfig="separate",
        )
    else:
        path = make_pyramid(**options)
    with pytest.raises(errors.SlideError, match=sentence):
        describe(path)


@pytest.mark.parametrize(
    ("pixels", "photometric", "sentence"),
    [
        (np.zeros((128, 128), np.uint8), "minisblack", "1 samples of 8 bits"),
        (np.zeros((128, 128, 3), np.uint16), "rgb", "3 samples of 16 bits"),
        (np.zeros((128, 128, 4), np.uint8), "rgb", "4 samples of 8 bits"),
    ],
)
def test_only_8_bit_rgb(tmp_path: Path, pixels: np.ndarray, photometric: str, sentence: str):
    tifffile.imwrite(tmp_path / "x.tif", pixels, tile=(64, 64), photometric=photometric)
    with pytest.raises(errors.SlideError, match=sentence):
        describe(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("c", "z", "sentence"), [(1, 1, "1 channels"), (4, 1, "4 channels"), (3, 5, "5 planes")]
)
def test_ome_fluorescence_and_stacks(make_pyramid: MakePyramid, c: int, z: int, sentence: str):
    path = make_pyramid(factors=(1,), description=OME.format(c=c, z=z))
    with pytest.raises(errors.SlideError, match=sentence):
        describe(path)


def test_ome_wins_over_the_resolution_tag(make_pyramid: MakePyramid) -> None:
    found = describe(make_pyramid(factors=(1,), mpp=0.9, description=OME.format(c=3, z=1)))
    assert (found.vendor, found.resolution.mpp) == ("ome", 0.25)


def test_ome_that_describes_another_image(make_pyramid: MakePyramid) -> None:
    path = make_pyramid(size=(512, 512), factors=(1,), description=OME.format(c=3, z=1))
    with pytest.raises(errors.SlideError, match="describes no image of 512x512 px"):
        describe(path)


def aperio(make_pyramid: MakePyramid, fields: str) -> vendor.Description:
    return describe(
        make_pyramid(
            factors=(1,),
            resolution=(1, 1),
            resolutionunit="NONE",
            description=f"Aperio Image Library v1\r\n1024x768 [0,0]|{fields}",
        )
    )


@pytest.mark.parametrize(
    ("fields", "expected", "source"),
    [
        ("AppMag = 40|MPP = 0.2528", 0.2528, "aperio"),
        ("AppMag = 40|MPP = 0,2528|MPP = 9", 0.2528, "aperio"),
        ("AppMag = 40", 0.25, "appmag"),
        ("AppMag = 40|MPP = 0", None, None),
        ("AppMag = 40|MPP = broken", None, None),
        ("Filename = MPP", None, None),
    ],
)
def test_aperio_fields(make_pyramid: MakePyramid, fields: str, expected, source) -> None:
    resolution = aperio(make_pyramid, fields).resolution
    assert (resolution.mpp, resolution.source) == (expected, source)


def test_aperio_label_macro_and_thumbnail_are_no_levels(tmp_path: Path) -> None:
    path = tmp_path / "x.svs"
    pages = [
        (1, (64, 64), "Aperio Image Library v1\r\n1024x768|MPP = 0.25", 0),
        (8, None, "Aperio Image Library v1\r\n1024x768 -> 128x96", 0),
        (2, (64, 64), "Aperio Image Library v1\r\n1024x768 -> 512x384", 0),
        (4, (64, 64), "Aperio Image Library v1\r\nlabel 256x192", 0),
        (8, (64, 64), "Aperio Image Library v1\r\nmacro 128x96", 0),
        (16, (64, 64), "Aperio Image Library v1", 9),
    ]
    with tifffile.TiffWriter(path) as file:
        for factor, tile, description, kind in pages:
            file.write(
                ramp((1024, 768), factor),
                tile=tile,
                photometric="rgb",
                description=description,
                subfiletype=kind,
                metadata=None,
            )
    assert [plane.width_px for plane in describe(path).planes] == [1024, 512]


def test_pages_of_another_shape_are_no_levels(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        for pixels in (ramp((512, 512), 4), ramp((1001, 777), 1), ramp((1001, 777), 3)):
            file.write(pixels, tile=(64, 64), photometric="rgb", metadata=None)
    sizes = [(plane.width_px, plane.height_px) for plane in describe(path).planes]
    assert sizes == [(1001, 777), (333, 259)]
