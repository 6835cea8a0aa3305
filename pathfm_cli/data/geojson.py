"""Tissue polygons as GeoJSON that QuPath opens: one FeatureCollection per slide.

Coordinates are level-0 pixels with y downwards, which is what QuPath calls full-resolution image
pixels. GeoJSON (RFC 7946) speaks of longitude and latitude; QuPath, and so this file, does not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import shapely

from pathfm_cli import artifacts, disk, errors

CLASSIFICATION = {"name": "Tissue", "color": [0, 160, 0]}
MARK = "pathfm"
"""Member of a file whose value is a digest of its features: who edits them makes it theirs."""
MAX_NAME_BYTES = 200
"""Longest name of a file; file systems take 255, and a temporary name is longer."""
MAX_OWN_BYTES = 256 << 20
"""Larger files are not looked into: they are someone else's."""


def features(
    areas: shapely.Geometry,
    classification: Mapping[str, Any] = CLASSIFICATION,
    kind: str = "annotation",
) -> dict[str, Any]:
    """A FeatureCollection with one object per polygon, coordinates in 1/100 pixel.

    Args:
        areas: a polygon or a multipolygon.
        classification: name and colour (red, green, blue) of the objects.
        kind: annotation, or detection, of which QuPath keeps many.
    """
    parts = shapely.transform(shapely.get_parts(areas), lambda xy: xy.round(2))
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": json.loads(shapely.to_geojson(part)),
                "properties": {
                    "objectType": kind,
                    "classification": copy.deepcopy(dict(classification)),
                },
            }
            for part in parts
        ],
    }


def export(
    tissue: str | os.PathLike[str], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> int:
    """Write `SLIDE.geojson` for every slide of a `tissue` artifact that has no error.

    Args:
        tissue: the artifact.
        folder: where the files go.
        overwrite: replace files that were edited, too.

    Returns:
        The number of files.

    Raises:
        errors.OutputClash: as `check`; then nothing was written.
    """
    frame = artifacts.read_table(tissue, "tissue").frame.filter(pl.col("error").is_null())
    check(folder, frame["slide"], overwrite=overwrite)
    for name, wkb in frame.select("slide", "geometry").iter_rows():
        write(folder, name, features(shapely.from_wkb(wkb)))
    return frame.height


def write(folder: str | os.PathLike[str], slide: str, collection: Mapping[str, Any]) -> None:
    """Write the FeatureCollection of a slide, marked so that `check` knows it again."""
    text = _compact({**collection, MARK: _digest(collection["features"])})
    with disk.atomic(file_for(folder, slide, ".geojson")) as temporary:
        temporary.write_text(text)


def file_for(folder: str | os.PathLike[str], slide: str, suffix: str) -> Path:
    """The file of a slide in a folder.

    Different slides have different files, and a slide id never leads out of the folder: "/" becomes
    "%2F", "%" becomes "%25", so do control characters, and what is too long for a file system is
    cut and ends with a digest of the id.
    """
    name = re.sub(r"[\x00-\x1f\x7f/%]", lambda found: f"%{ord(found[0]):02X}", slide)
    if len((name + suffix).encode()) > MAX_NAME_BYTES:
        digest = hashlib.sha256(slide.encode()).hexdigest()[:12]
        room = MAX_NAME_BYTES - len(suffix) - len(digest) - 1
        name = f"{name.encode()[:room].decode(errors='ignore')}-{digest}"
    return Path(folder) / (name + suffix)


def check(
    folder: str | os.PathLike[str], slides: Iterable[str], *, overwrite: bool = False
) -> None:
    """See that outlines of slides may be written: nothing is there, or what `export` left there.

    Raises:
        errors.OutputClash: a file was edited, or is another's.
    """
    for slide in () if overwrite else slides:
        file = file_for(folder, slide, ".geojson")
        if os.path.lexists(file) and not _untouched(file):
            raise errors.OutputClash(
                f"{file} was edited, or pathfm did not write it.",
                "another --geojson folder, or --overwrite to lose what was edited",
            )


def _untouched(file: Path) -> bool:
    """Whether `export` wrote a file and nobody changed its features."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_OWN_BYTES:
            return False
        document = json.loads(file.read_bytes())
        return bool(document[MARK] == _digest(document["features"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _digest(found: Any) -> str:
    return hashlib.sha256(_compact(found).encode()).hexdigest()[:12]


def _compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))
