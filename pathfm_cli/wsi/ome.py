"""OME-XML of an OME-TIFF: physical pixel size, sample layout, objective.

Schema: https://www.openmicroscopy.org/Schemas/OME/2016-06. Parsed with expat; a document type or
an entity is refused, so nothing expands and nothing is fetched.
"""

from __future__ import annotations

import dataclasses
from xml.parsers import expat

from pathfm_cli import errors
from pathfm_cli.wsi import labels

MAX_XML_BYTES = 16 << 20

_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """One image of the document.

    Attributes:
        mpp: (x, y) in um/px; 0.0 where it is absent or its unit is no length.
        planes: focal planes times time points times channels beyond one RGB channel.
        label: whether its name says that it is a label, macro, overview or thumbnail.
    """

    width_px: int
    height_px: int
    mpp: tuple[float, float]
    size_c: int
    planes: int
    pixel_type: str
    label: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """What pathfm needs of an OME-XML document.

    Attributes:
        label_ifds: numbers of the TIFF directories that hold images with `label`.
    """

    images: tuple[Image, ...]
    objective: float | None
    label_ifds: frozenset[int]


def is_ome(description: str) -> bool:
    """Whether a TIFF ImageDescription is OME-XML."""
    head = description[:2000]
    return "<OME" in head and "openmicroscopy.org/Schemas" in head


def parse(description: str, name: str) -> Document:
    """Read an OME-XML document.

    Raises:
        errors.SlideError: damaged, too large, or with a document type or entities.
    """
    if len(description) > MAX_XML_BYTES:
        raise errors.SlideError(f"{name}: its OME-XML has more than {MAX_XML_BYTES >> 20} MB")
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    try:
        parser.Parse(description.encode(), True)
    except (expat.ExpatError, ValueError) as error:
        raise errors.SlideError(f"{name}: its OME-XML cannot be read ({error})") from error
    return Document(tuple(reader.images), reader.objective, frozenset(reader.label_ifds))


class _Reader:
    def __init__(self) -> None:
        self.images: list[Image] = []
        self.objective: float | None = None
        self.label_ifds: set[int] = set()
        self._label = False

    def refuse(self, *declaration: object) -> None:
        raise ValueError("it declares a document type or an entity")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        plain = tag.rpartition(":")[2]
        if plain == "Image":
            self._label = labels.is_name_of_one(attributes.get("Name", ""))
        elif plain == "TiffData" and self._label and "IFD" in attributes:
            self.label_ifds.add(int(attributes["IFD"]))
        elif tag.endswith("Pixels"):
            self.images.append(_image(attributes, self._label))
        elif tag.endswith("Objective") and self.objective is None:
            self.objective = _number(attributes.get("NominalMagnification", "")) or None


def _image(attributes: dict[str, str], label: bool) -> Image:
    sizes = {key: int(attributes.get(f"Size{key}", "1")) for key in "XYCZT"}
    mpp = [
        _number(attributes.get(f"PhysicalSize{axis}", ""))
        * _UM.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"), 0.0)
        for axis in "XY"
    ]
    return Image(
        width_px=sizes["X"],
        height_px=sizes["Y"],
        mpp=(mpp[0], mpp[1]),
        size_c=sizes["C"],
        planes=sizes["Z"] * sizes["T"],
        pixel_type=attributes.get("Type", ""),
        label=label,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
