"""Metadata that may tell who somebody is: which tags are found, and that no value leaves."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from processes import pathfm
from ramps import MakePyramid

from pathfm_cli import errors
from pathfm_cli.data import identifiers

APERIO = "Aperio Image Library v11.0.37\n1024x768 (64x64) JPEG|AppMag = 40|MPP = 0.25"
SECRET = "Jane Roe 1961"
NAMED = {"ScanScope ID", "Filename", "ImageID", "Title"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{APERIO}|User = {SECRET}|Date = 12/29/09|Time = 09:59:15", {"User", "Date", "Time"}),
        (f"{APERIO}|ScanScope ID = SS1|Filename = 7|ImageID = 8|Title = x", NAMED),
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
        (
            '<DataObject><Attribute Name="PIM_DP_UFS_BARCODE">MTIz</Attribute></DataObject>',
            {"PIM_DP_UFS_BARCODE"},
        ),
        (
            '<Attribute Name="DICOM_PATIENT_NAME" Group="0x10">Roe</Attribute>',
            {"DICOM_PATIENT_NAME"},
        ),
        ('<Attribute Name="DICOM_PATIENT_NAME"></Attribute><x/>', set()),
        ('<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>', set()),
        ('<M K="Patient Name">Roe</M>', {"Patient Name"}),
        ("<Key>User</Key><Value>Roe</Value>", {"User"}),
        ('<name>aperio.User</name>\n<value type="VipsRefString">Roe</value>', {"aperio.User"}),
        ('<Property Name="Case" Value="7"/>', {"Case"}),
        ('<OME><Image ID="Image:0" Name="Roe"/></OME>', {"Image Name"}),
        (
            '{"patient_name": "Roe", "PatientID":"7", "shape": [1, 2]}',
            {"patient_name", "PatientID"},
        ),
        ('{"patient_name": ""}', set()),
        ("hamamatsu.NDP.S/N = 7\nhamamatsu.Reference=S12", None),
        ("mirax.GENERAL.SLIDE_NAME = Roe", {"mirax.GENERAL.SLIDE_NAME"}),
        ("a\rUser = Roe", {"User"}),
        ("<creationDate>2011-02-03T10:00:00.10Z</creationDate>", {"creationDate"}),
        ('<rdf:Description rdf:about="" xmp:CreateDate="2011-02-03T10:00:00"/>', {"CreateDate"}),
        ("<dc:creator><rdf:Seq><rdf:li>Roe</rdf:li></rdf:Seq></dc:creator>", {"creator"}),
    ],
)
def test_keys_that_may_identify(text: str, found: set[str] | None) -> None:
    if found is None:
        found = {"hamamatsu.NDP.S/N", "hamamatsu.Reference"}
    assert identifiers.keys_in(text) == found


KEYS = """
Name|Surname|First Name|Last Name|User Name|Sex|Age|Gender|NHS Number|MRN|DOB|SSN|E-mail|Address
Patient|Date of Birth|Accession|Physician|Operator|Experimenter|Institution|Hospital|Barcode
Serial Number|Case Number|Medical Record|Acquisition Date Time|Pathologist|Technician|Slide|Slide ID
Case|Case No|Case ID|Specimen ID|Sample ID|Comment|Author|Creator|Label Text|Study ID|Created
Creation Date Time
Datetime|Date Created|Scan Date|Acquisition Time|Study Date|Specimen|Block ID|Slide Annotation|PID
NHS|NHS No|Forename|Phone|Telephone|Created By|Owner|Doctor|Comments|Description|Reference
"""


@pytest.mark.parametrize("key", KEYS.strip().replace("\n", "|").split("|"))
def test_each_key(key: str) -> None:
    assert identifiers.keys_in(f"{APERIO}|{key} = x") == {key}


@pytest.mark.parametrize(
    "date",
    """2011-02-03T10:00:00 2011-02-03T10:00:00.10Z 31-12-2019 2020.01.31 20200131 20131101123456.0
    20200131T101112 2019/12/31 2019:12:31""".split()
    + ["12 Jan 2020", "12-Jan-2020", "Jan 12, 2020", "January 12 2020", "on 31.12.2019."],
)
def test_each_date(date: str) -> None:
    assert identifiers.keys_in(f"scanned {date} here") == {"a date"}


@pytest.mark.parametrize(
    "text", ["12345678", "20209931", "10.0.50", "0.2020.01", "1024x768", "v3.1"]
)
def test_no_date(text: str) -> None:
    assert identifiers.keys_in(f"library {text} here") == set()


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


DICOM = """
PatientName PatientID PatientBirthDate PatientSex PatientAge PatientAddress PatientComments
PatientTelephoneNumbers OtherPatientNames OtherPatientIDs AccessionNumber StudyID StudyDescription
SeriesDescription ImageComments ContainerIdentifier ReferringPhysicianName PerformingPhysicianName
OperatorsName InstitutionName InstitutionAddress StationName DeviceSerialNumber BarcodeValue
LabelText StudyDate SeriesDate ContentDate AcquisitionDate AcquisitionDateTime StudyTime
SpecimenIdentifier SpecimenShortDescription EthnicGroup Occupation InstitutionalDepartmentName
"""
VALUES = {"Date": "20200131", "Time": "101112", "DateTime": "20200131101112", "Age": "061Y"}


def of_dicom(folder: Path, **values: str) -> tuple[str, ...]:
    """What is found in a DICOM file without pixels."""
    from pydicom import dataset, uid

    header = dataset.Dataset()
    header.file_meta = dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    for name, value in values.items():
        setattr(header, name, value)
    if not values:
        header.private_block(0x11, "MAKER", create=True).add_new(1, "LO", SECRET)
    header.save_as(folder / "a.dcm", enforce_file_format=True)
    return identifiers.find(f"{folder}/")


@pytest.mark.parametrize("keyword", DICOM.split())
def test_each_dicom_keyword(tmp_path: Path, keyword: str) -> None:
    pytest.importorskip("pydicom")
    endings = [end for end in VALUES if keyword.endswith(end)]
    value = VALUES[max(endings, key=len)] if endings else "7"
    assert of_dicom(tmp_path, **{keyword: value}) == (keyword,)


def test_other_tags_of_dicom(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    assert of_dicom(tmp_path, PatientName="", Manufacturer="x", SpecimenLabelInImage="NO") == ()
    assert of_dicom(tmp_path, SpecimenLabelInImage="YES") == ("SpecimenLabelInImage",)
    assert of_dicom(tmp_path) == ("a private tag",)


@pytest.mark.parametrize("kind", ["LABEL", "OVERVIEW", "THUMBNAIL"])
def test_label_images_of_dicom(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pydicom")
    found = of_dicom(tmp_path, ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"])
    assert found == (identifiers.LABEL,)


def test_a_tiff_that_only_openslide_reads(formats_folder: Path) -> None:
    pytest.importorskip("openslide")
    found = identifiers.find(str(formats_folder / "fluorescence-DAPI.ndpi"))
    assert {"Created", "NDP.S/N", "ScannerSerialNumber", "DateTime", identifiers.LABEL} <= set(
        found
    )
    assert "hamamatsu.Created" not in found


def test_too_much_text(make_pyramid: MakePyramid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifiers, "keys_in", lambda text: set())
    text = "x" * identifiers.MAX_TEXT_BYTES
    sizes = {"size": (512, 512), "description": text}
    assert identifiers.find(str(make_pyramid("a.tif", factors=range(1, 8), **sizes))) == ()
    path = make_pyramid("b.tif", factors=range(1, 10), **sizes)
    with pytest.raises(errors.SlideError, match="more than 8 MB of text in its tags"):
        identifiers.find(str(path))


def test_nothing_read_is_no_clean_bill(tmp_path: Path) -> None:
    (tmp_path / "c.svs").write_bytes(b"no slide")
    done = pathfm("index", tmp_path / "c.svs", "-o", tmp_path / "s.parquet", "--deidentify-check")
    assert "pathfm: the metadata of no slide could be read" in done.stderr
    assert "no identifiers" not in done.stderr
    for paths in ([], [str(tmp_path / "c.svs")]):
        assert not any("no identifiers" in said for said in identifiers.check(paths).sentences)


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
