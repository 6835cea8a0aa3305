"""Metadata that may tell who somebody is: which tags are found, and that no value leaves."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from processes import pathfm
from ramps import MakePyramid

from pathfm_cli.data import identifiers

APERIO = "Aperio Image Library v11.0.37\n1024x768 (64x64) JPEG|AppMag = 40|MPP = 0.25"
SECRET = "Jane Roe 1961"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{APERIO}|User = {SECRET}|Date = 12/29/09|Time = 09:59:15", {"User", "Date", "Time"}),
        (f"{APERIO}|ScanScope ID = SS1|Filename = 7|ImageID = 8|Title = x", None),
        (f"{APERIO}|Patient Name = {SECRET}", {"Patient Name"}),
        (f"{APERIO}|User = |Date=", set()),
        (f"{APERIO}|ICC Profile = IEC 61966-2.1", set()),
        ("patient_id: 77\nAccession No: 3", {"patient_id", "Accession No"}),
        ("scanned on 12/31/2019", {"a date"}),
        ("scanned on 31.12.2019", {"a date"}),
        ("scanned 2019-12-31", {"a date"}),
        ("library 10.0.50, 0.25 um/px, see https://example.org", set()),
        (
            f'<OME><Image ID="Image:0"/><Experimenter UserName="{SECRET}" Email=""/></OME>',
            {"UserName"},
        ),
        ("<OME><AcquisitionDate>2020-01-01</AcquisitionDate></OME>", {"AcquisitionDate"}),
        ('<DataObject><Attribute Name="PIM_DP_UFS_BARCODE">MTIz</Attribute></DataObject>', set()),
    ],
)
def test_keys_that_may_identify(text: str, found: set[str] | None) -> None:
    expected = {"ScanScope ID", "Filename", "ImageID", "Title"} if found is None else found
    assert identifiers.keys_in(text) == expected


def test_tags_of_a_tiff(make_pyramid: MakePyramid) -> None:
    clean = make_pyramid("clean.tif", description=APERIO, software="scanner 1.2")
    assert identifiers.find(str(clean)) == ()
    named = make_pyramid(
        "named.tif",
        datetime="2019:12:31 10:00:00",
        extratags=[(315, "s", 0, SECRET, True), (316, "s", 0, "host7", True)],
    )
    assert identifiers.find(str(named)) == ("Artist", "DateTime", "HostComputer")


def test_the_real_aperio_slide(slides_folder: Path) -> None:
    found = identifiers.find(str(slides_folder / "CMU-1-Small-Region.svs"))
    assert set(found) == {
        *("Date", "Filename", "ImageID", "ScanScope ID", "Time", "User"),
        "label or macro image",
    }


def test_tags_of_a_dicom_series(formats_folder: Path) -> None:
    pytest.importorskip("pydicom")
    found = identifiers.find(f"{formats_folder / 'dicom-CMU-1-Small-Region'}/")
    assert {"ContainerIdentifier", "DeviceSerialNumber", "label or macro image"} <= set(found)
    assert "PatientName" not in found  # it is empty there


def test_index_warns_and_prints_no_value(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    first = make_pyramid("a.svs", description=f"{APERIO}|User = {SECRET}|Date = 12/29/09")
    second = make_pyramid("b.svs", description=APERIO)
    (tmp_path / "c.svs").write_bytes(b"no slide")
    out = tmp_path / "s.parquet"
    paths = [first, second, tmp_path / "c.svs"]
    done = pathfm("index", *paths, "-o", out, "--deidentify-check")
    assert done.returncode == 4  # c.svs is a row with an error
    lines = done.stderr.splitlines()
    assert "pathfm: 1 of 2 slides carry identifiers: Date (1), User (1)" in lines
    assert f"pathfm:   {first}: Date, User" in lines
    assert f"pathfm: 1 slides cannot be checked, such as {tmp_path / 'c.svs'}" in lines
    for text in (done.stderr, done.stdout, out.read_bytes().decode("latin-1")):
        assert SECRET not in text and "12/29/09" not in text
    # Up to date, it is still looked at; and without the option nothing is said.
    assert "carry identifiers" in pathfm("index", *paths, "-o", out, "--deidentify-check").stderr
    assert "identifiers" not in pathfm("index", *paths, "-o", out).stderr


LABEL_COLOUR = (255, 0, 255)


@pytest.mark.parametrize("brand", ["aperio", "generic"])
def test_label_and_macro_reach_no_output(brand: str, tmp_path: Path) -> None:
    """The label is a tiled copy of level 0 in half size: all but its name says it is a level."""
    path = tmp_path / "slide.svs"
    head = APERIO if brand == "aperio" else ""
    with tifffile.TiffWriter(path) as file:
        for number, name in enumerate(["", "", "label", "macro"]):
            side = (1024, 1024, 512, 256)[number] if number != 1 else 768
            grey = np.full((side, side, 3), 120, np.uint8)
            pixels = np.full_like(grey, LABEL_COLOUR) if name else grey
            texts = {"aperio": f"Aperio\n{name or head}", "generic": name or "scan"}
            file.write(
                pixels,
                tile=(64, 64),
                photometric="rgb",
                compression="zlib",
                resolution=(1e4 / 0.25, 1e4 / 0.25),
                resolutionunit="CENTIMETER",
                description=head if brand == "aperio" and not number else texts[brand],
                metadata=None,
            )
    slides, tissue = tmp_path / "s.parquet", tmp_path / "t.parquet"
    assert pathfm("index", path, "-o", slides).returncode == 0
    import polars as pl

    from pathfm_cli.data import cohort

    row = pl.read_parquet(slides).row(0, named=True)
    assert [level["width_px"] for level in row["levels"]] == [1024, 768]
    opened = cohort.open_cohort(slides)
    for mpp in (0.25, 0.5, 1.0, 4.0):
        pixels = opened.reader.read_patch(opened.slides[0], 0, 0, mpp, 64)
        assert np.abs(pixels.astype(int) - 120).max() <= 2, mpp
    previews = tmp_path / "previews"
    done = pathfm("mask", slides, "--method", "otsu", "-o", tissue, "--preview", previews)
    assert done.returncode == 0, done.stderr
    from PIL import Image

    pictures = list(previews.glob("*.png"))
    assert len(pictures) == 1
    for picture in pictures:
        drawn = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
        assert not (drawn == LABEL_COLOUR).all(1).any()
