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
from pathfm_cli.wsi import ahead, dicom, labels, rendered, series, store, tiff

MAX_TEXT_BYTES = 1 << 20
"""Of a text tag, so much is searched."""

WHOLE_TAGS = {
    269: "DocumentName",
    306: "DateTime",
    315: "Artist",
    316: "HostComputer",
    33432: "Copyright",
    33723: "IPTC",
}
"""TIFF tags that are a finding when they hold anything."""
TEXT_TAGS = (tiff.IMAGE_DESCRIPTION, tiff.PAGE_NAME, tiff.SOFTWARE, tiff.XMP)
"""TIFF tags (ImageDescription, PageName, Software, XMP) whose keys are looked at."""
KEYS = (
    *("user", "date", "time", "datetime", "filename", "imageid", "title", "slideid", "caseid"),
    *("mrn", "dob", "ssn", "scandate", "acquisitiondate", "acquisitiontime", "scanscopeid"),
)
"""Keys that are a finding, spelled without spaces, signs and capitals."""
PARTS = (
    *("patient", "birth", "accession", "physician", "operator", "experimenter", "institution"),
    *("hospital", "barcode", "serialnumber", "username", "firstname", "lastname", "email"),
    *("casenumber", "medicalrecord", "acquisitiondatetime"),
)
"""What makes a key a finding wherever it stands in it."""
DICOM_KEYWORDS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("OtherPatientIDs", "AccessionNumber", "ContainerIdentifier", "SpecimenIdentifier"),
    *("ReferringPhysicianName", "OperatorsName", "InstitutionName", "InstitutionAddress"),
    *("StationName", "DeviceSerialNumber", "BarcodeValue", "LabelText"),
    *("StudyDate", "SeriesDate", "ContentDate", "AcquisitionDateTime"),
)
LABEL = "label or macro image"

_FIELD = re.compile(
    r"(?:^|[|\n;,])[ \t]*([A-Za-z][\w .-]{0,48}?)[ \t]*(?:=|:(?!//))[ \t]*[^\s|;,=:]"
)
_ATTRIBUTE = re.compile(r"\s(?:\w{1,32}:)?(\w{1,64})=[\"'][^\s\"']")
_ELEMENT = re.compile(r"<(?:\w{1,32}:)?(\w{1,64})[^<>]{0,512}>\s*[^<>\s]")
_DATE = re.compile(
    r"(?<![\w.])(?:(?:19|20)\d\d[-/:]\d\d?[-/:]\d\d?|\d\d?/\d\d?/\d\d(?:\d\d)?|\d\d?\.\d\d?\.(?:19|20)\d\d)"
    r"(?![\w.])"
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
            return (*said, f"no identifiers in the metadata of {self.looked} slides")
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
    names: set[str] = set()
    for directory in _all(tiff.directories(ahead.Ahead(source))):
        names |= set(_of_directory(directory))
    return tuple(sorted(names))


def keys_in(text: str) -> set[str]:
    """Those keys in a text (`KEY = VALUE`, `KEY: VALUE`, XML) that may identify somebody.

    A date beside none of them is the finding "a date".
    """
    names = set()
    for pattern in (_FIELD, _ATTRIBUTE, _ELEMENT):
        for match in pattern.finditer(text):
            name = match[1].strip()
            plain = re.sub(r"[\W_]", "", name.rpartition(".")[2]).lower()
            if plain in KEYS or any(part in plain for part in PARTS):
                names.add(name)
    if not any("date" in name.lower() for name in names) and _DATE.search(text):
        names.add("a date")
    return names


def _tried(path: str) -> tuple[str, ...] | None:
    try:
        return find(path)
    except errors.SlideError:
        return None


def _all(chain: Sequence[tiff.Directory]) -> Iterator[tiff.Directory]:
    for directory in chain:
        yield directory
        yield from directory.children


def _of_directory(directory: tiff.Directory) -> Iterator[str]:
    for tag, name in WHOLE_TAGS.items():
        if directory.start(tag, MAX_TEXT_BYTES).strip():
            yield name
    for tag in TEXT_TAGS:
        yield from keys_in(directory.start(tag, MAX_TEXT_BYTES))
    described = directory.start(tiff.IMAGE_DESCRIPTION, MAX_TEXT_BYTES)
    if labels.is_label(directory) or labels.names_one(described):
        yield LABEL


def _of_dicom(source: series.Series) -> set[str]:
    names: set[str] = set()
    for header in dicom.headers(source, source.uri):
        names |= {
            str(element.keyword)
            for element in header.iterall()
            if element.keyword in DICOM_KEYWORDS and str(element.value).strip()
        }
        if dicom.is_auxiliary(header):
            names.add(LABEL)
    return names


def _of_openslide(path: str) -> set[str]:
    if store.is_remote(path):
        raise errors.SlideError(f"{path}: only openslide reads it, and that only from a disk")
    source = rendered.Rendered(f"{path}{rendered.MARK}")
    text = "\n".join(f"{key} = {value}" for key, value in source.properties.items())
    return keys_in(text) | ({LABEL} if source.pictures else set())


def sentences(files: Sequence[Any], workers: int = 0) -> tuple[str, ...]:
    """`check` of the files of an index plan, as sentences; those that are gone are left out."""
    return check([file.source.path for file in files if file.problem is None], workers).sentences
