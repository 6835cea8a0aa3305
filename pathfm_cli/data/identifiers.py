"""Metadata of slides that may tell who a patient or an operator is: the tags' names, no values.

What counts is stated in `docs/security.md`. Values are looked at and never returned, so nothing of
them can reach a log. A slide without findings is not proved anonymous: pixels are not looked at.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

from pathfm_cli import errors
from pathfm_cli.wsi import ahead, dicom, labels, rendered, series, store, tiff, vendor

MAX_TEXT_BYTES = 1 << 20
"""Of a text tag, so much is searched."""
MAX_TAG_BYTES = 4096
"""Of a tag that counts when it holds anything, so much is looked at."""
MAX_SLIDE_TEXT_BYTES = 8 << 20
"""Of a slide's TIFF tags, so much is searched (a second each MB at worst): tags may share bytes."""

WHOLE_TAGS = {
    269: "DocumentName",
    306: "DateTime",
    315: "Artist",
    316: "HostComputer",
    33432: "Copyright",
    33723: "IPTC",
    65427: "Reference",
    65442: "ScannerSerialNumber",
}
"""TIFF tags that are a finding when they hold anything."""
TEXT_TAGS = (tiff.IMAGE_DESCRIPTION, tiff.PAGE_NAME, tiff.SOFTWARE, tiff.XMP, 65449)
"""TIFF tags (ImageDescription, PageName, Software, XMP, NDPI's properties) whose keys count."""
KEYS = (
    *("user", "date", "time", "datetime", "created", "createdate", "creationdate", "datecreated"),
    *("scandate", "acquisitiondate", "acquisitiontime", "studydate", "studyid", "filename"),
    *("title", "slide", "slideid", "slidename", "imageid", "case", "caseid", "caseno"),
    *("specimen", "specimenid", "sampleid", "blockid", "labeltext", "slideannotation"),
    *("mrn", "dob", "ssn", "pid", "nhs", "nhsnumber", "nhsno", "sn", "scanscopeid"),
    *("surname", "forename", "sex", "gender", "age", "phone", "telephone", "address"),
    *("author", "creator", "createdby", "owner", "doctor", "comment", "comments"),
)
"""Keys that are a finding, spelled without spaces, signs and capitals."""
LOOSE_KEYS = ("name", "description", "reference")
"""The same; but as XML's own tags and attributes they are everywhere, and no finding there."""
PARTS = (
    *("patient", "birth", "accession", "physician", "operator", "experimenter", "institution"),
    *("hospital", "barcode", "serialnumber", "username", "firstname", "lastname", "email"),
    *("casenumber", "medicalrecord", "acquisitiondatetime", "creationdatetime"),
    *("pathologist", "technician"),
)
"""What makes a key a finding wherever it stands in it."""
DICOM_KEYWORDS = (
    *("PatientID", "PatientSex", "PatientAge", "PatientAddress", "PatientComments"),
    *("PatientTelephoneNumbers", "OtherPatientIDs", "EthnicGroup", "Occupation"),
    *("AccessionNumber", "StudyID", "StudyDescription", "SeriesDescription", "ImageComments"),
    *("ContainerIdentifier", "SpecimenIdentifier", "SpecimenShortDescription"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    *("StationName", "DeviceSerialNumber", "BarcodeValue", "LabelText"),
)
DICOM_TYPES = ("PN", "DA", "DT", "TM")
"""DICOM value representations that are a finding: names of persons, dates and times."""
LABEL = "label or macro image"

_FIELD = re.compile(r"(?:^|[|\r\n;,])[ \t]*(\w[\w ./-]{0,48}?)[ \t]*(?:=|:(?!//))[ \t]*[^\s|;,=:]")
_JSON = re.compile(r"\"([\w ./-]{1,64})\"\s*:\s*(?:\"[^\"]|[\w\[{-])")
_ATTRIBUTE = re.compile(r"\s(?:\w{1,32}:)?(\w{1,64})=[\"'][^\s\"']")
_ELEMENT = re.compile(
    r"<(?:\w{1,32}:)?(\w{1,64})[^<>]{0,512}>\s*(?:<rdf:\w{1,32}[^<>]{0,128}>\s*){0,2}[^<>\s]"
)
_PAIRS = (
    re.compile(r"\s(?:Name|Key|K)=[\"']([^\"'<>]{1,64})[\"'][^<>]{0,512}>\s*[^<>\s]", re.I),
    re.compile(r"\s(?:Name|Key|K)=[\"']([^\"'<>]{1,64})[\"']\s+(?:Value|V)=[\"'][^\"']", re.I),
    re.compile(
        r"<(?:\w{1,32}:)?(?:Name|Key)>([^<>]{1,64})</[\w:]{1,64}>\s*"
        r"<(?:\w{1,32}:)?Value(?:\s[^<>]{0,512})?>\s*[^<>\s]",
        re.I,
    ),
)
"""Keys that XML holds as values, as Philips, OME and Bio-Formats, and libvips write them."""
_OME_NAME = re.compile(r"<(?:\w{1,32}:)?Image\s[^<>]{0,512}?\bName=[\"'][^\s\"']")
_YEAR = r"(?:19|20)\d\d"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_DATE = re.compile(
    r"(?<![\w.])(?:"
    + "|".join(
        (
            rf"{_YEAR}[-/:]\d\d?[-/:]\d\d?(?:T[\d:.]{{2,15}}Z?)?",
            rf"{_YEAR}\.(?:0\d|1[0-2])\.[0-3]\d",
            rf"{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[T_]?\d{{4,6}}(?:\.\d{{1,6}})?)?",
            r"\d\d?/\d\d?/\d\d(?:\d\d)?",
            rf"\d\d?[.-]\d\d?[.-]{_YEAR}",
            rf"\d\d?[ .-]{{1,2}}{_MONTH}[ .,-]{{1,2}}{_YEAR}",
            rf"{_MONTH}[ .]{{1,2}}\d\d?,? {_YEAR}",
        )
    )
    + r")(?!\w|\.\d)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        found: path or URL to the names of its tags, sorted; only slides with findings.
        unread: slides whose metadata cannot be read.
        looked: slides that were looked at.
    """

    found: dict[str, tuple[str, ...]]
    unread: tuple[str, ...]
    looked: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """For a person: how many slides, which tags how often, three of the slides."""
        said = []
        if self.unread:
            said.append(f"{len(self.unread)} slides cannot be checked, such as {self.unread[0]}")
        if not self.found:
            none = f"no identifiers in the metadata of {self.looked} slides"
            if not self.looked:
                none = "the metadata of no slide could be read: nothing is known of identifiers"
            return (*said, none)
        counts = collections.Counter(name for names in self.found.values() for name in names)
        tags = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        said.append(f"{len(self.found)} of {self.looked} slides carry identifiers: {tags}")
        first = list(self.found.items())[:3]
        said += [f"  {path}: {', '.join(names)}" for path, names in first]
        more = len(self.found) - len(first)
        return (*said, *([f"  ... {more} more slides"] if more else []))


def check(paths: Sequence[str], workers: int = 0) -> Report:
    """Look at the metadata of slides.

    Args:
        paths: files, folders of DICOM files (ending in `/`) and URLs.
        workers: threads; 0 means one per core.
    """
    found: dict[str, tuple[str, ...]] = {}
    unread = []
    with futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for path, names in zip(paths, pool.map(_tried, paths), strict=True):
            if names is None:
                unread.append(path)
            elif names:
                found[path] = names
    return Report(found, tuple(unread), len(paths) - len(unread))


def find(path: str) -> tuple[str, ...]:
    """Names of the tags of one slide that may identify somebody, sorted.

    Raises:
        errors.SlideError: the slide's metadata cannot be read.
    """
    source = store.Source.open(path)
    if isinstance(source, series.Series):
        return tuple(sorted(_of_dicom(source)))
    if not tiff.is_tiff(source.read(0, min(16, source.size))):
        return tuple(sorted(_of_openslide(path)))
    source = ahead.Ahead(source)
    names = _of_tiff(source)
    if _is_rendered(source, path):
        try:
            told = _of_openslide(path)
        except errors.SlideError:
            if not names:
                raise
            return tuple(sorted(names))
        # openslide tells what tags hold as `hamamatsu.Created`.
        names |= {name for name in told if name.partition(".")[2] not in names}
    return tuple(sorted(names))


def keys_in(text: str) -> set[str]:
    """Those keys in a text (`KEY = VALUE`, `KEY: VALUE`, JSON, XML) that may identify somebody.

    A date beside none of them is the finding "a date".
    """
    names = {
        name
        for pattern in (_FIELD, _JSON, *_PAIRS)
        for name in _keys(pattern, text)
        if _may_identify(name, (*KEYS, *LOOSE_KEYS))
    }
    names |= {
        name
        for pattern in (_ATTRIBUTE, _ELEMENT)
        for name in _keys(pattern, text)
        if _may_identify(name, KEYS)
    }
    if _OME_NAME.search(text):
        names.add("Image Name")
    if not any("date" in name.lower() for name in names) and _DATE.search(text):
        names.add("a date")
    return names


def _keys(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (match[1].strip() for match in pattern.finditer(text))


def _may_identify(name: str, keys: Sequence[str]) -> bool:
    # Of `mirax.GENERAL.SLIDE_ID` or `NDP.S/N` the last word counts.
    plain = re.sub(r"[\W_]", "", name.rpartition(".")[2]).lower()
    return plain in keys or any(part in plain for part in PARTS)


def _is_rendered(source: store.Source, path: str) -> bool:
    """Whether a TIFF is one that only openslide reads, such as NDPI."""
    try:
        vendor.describe(source, path)
    except vendor.Foreign:
        return True
    except errors.SlideError:
        return False
    return False


def _tried(path: str) -> tuple[str, ...] | None:
    try:
        return find(path)
    except errors.SlideError:
        return None


def _all(chain: Sequence[tiff.Directory]) -> Iterator[tiff.Directory]:
    for directory in chain:
        yield directory
        yield from directory.children


def _of_tiff(source: store.Source) -> set[str]:
    names: set[str] = set()
    left = MAX_SLIDE_TEXT_BYTES
    for directory in _all(tiff.directories(source)):
        for tag, name in WHOLE_TAGS.items():
            if directory.start(tag, MAX_TAG_BYTES).strip():
                names.add(name)
        texts = [directory.start(tag, MAX_TEXT_BYTES) for tag in TEXT_TAGS]
        left -= sum(map(len, texts))
        if left < 0:
            raise errors.SlideError(
                f"{source.uri}: more than {MAX_SLIDE_TEXT_BYTES >> 20} MB of text in its tags"
            )
        for text in texts:
            names |= keys_in(text)
        if labels.is_label(directory) or any(map(labels.names_one, texts)):
            names.add(LABEL)
    return names


def _of_dicom(source: series.Series) -> set[str]:
    names: set[str] = set()
    for header in dicom.headers(source, source.uri):
        names |= {
            str(element.keyword) or "a private tag"
            for element in header.iterall()
            if _is_finding(element) and str(element.value).strip()
        }
        if dicom.is_auxiliary(header):
            names.add(LABEL)
    return names


def _is_finding(element: Any) -> bool:
    if element.keyword == "SpecimenLabelInImage":
        return str(element.value) == "YES"
    own = element.tag.is_private and not element.tag.is_private_creator
    return own or element.keyword in DICOM_KEYWORDS or element.VR in DICOM_TYPES


def _of_openslide(path: str) -> set[str]:
    if store.is_remote(path):
        raise errors.SlideError(f"{path}: only openslide reads it, and that only from a disk")
    source = rendered.Rendered(f"{path}{rendered.MARK}")
    text = "\n".join(f"{key} = {value}" for key, value in source.properties.items())
    return keys_in(text) | ({LABEL} if source.pictures else set())


def sentences(files: Sequence[Any], workers: int = 0) -> tuple[str, ...]:
    """`check` of the files of an index plan, as sentences; those that are gone are left out."""
    return check([file.source.path for file in files if file.problem is None], workers).sentences
