"""Outlines that people drew: GeoJSON of QuPath and its kin to one multipolygon a slide.

Coordinates are level-0 pixels with y downwards. A file is a FeatureCollection, one Feature, a list
of Features (what QuPath writes without "FeatureCollection"), or a bare geometry.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely import geometry

from pathfm_cli import errors
from pathfm_cli.data import polygons

EXCLUDED = ("Ignore*", "Background", "Artefact", "Artifact", "Pen", "Glass")
"""Class names that are no tissue; the first is QuPath's own."""
SUFFIXES = (".geojson", ".json")
"""How the file of a slide may end."""
MAX_FILE_BYTES = 256 << 20
MAX_COORDINATE = 1e9
"""No slide is so wide; arithmetic on the squares of larger ones would overflow in the end."""
MAX_OVERLAPS, OVERLAPS_PER_EDGE = 1_000_000, 20
"""Pairs of edges near each other in an invalid area, and more for each edge: each may cross, and
the repair of some million crossings takes a minute and gigabytes."""
UNCLASSIFIED = ""

_AREAS = ("Polygon", "MultiPolygon")


def read(
    path: str | os.PathLike[str],
    include: Sequence[str] = (),
    exclude: Sequence[str] = EXCLUDED,
) -> geometry.MultiPolygon:
    """Read the tissue that a file outlines: all of `include` without any of `exclude`.

    Points and lines have no area and do not count.

    Args:
        path: a GeoJSON file.
        include: class names that are tissue; empty means every class that is not excluded,
            unclassified annotations too.
        exclude: class names whose area is taken away.

    Returns:
        A valid multipolygon in level-0 pixels; empty if the file outlines nothing.

    Raises:
        errors.SlideError: missing, too large, or no GeoJSON.
    """
    wanted, unwanted = [], []
    for name, shape in _features(Path(path), _parse(Path(path))):
        if name in exclude:
            unwanted.append(shape)
        elif not include or name in include:
            wanted.append(shape)
    tissue = shapely.union_all(wanted)
    if unwanted:
        tissue = shapely.difference(tissue, shapely.union_all(unwanted))
    return polygons.multipolygon(tissue)


def files(folder: str | os.PathLike[str]) -> list[Path]:
    """The GeoJSON files of a folder, by name; none if there is no such folder.

    Pipes, folders and dangling links are no files.
    """
    if not Path(folder).is_dir():
        return []
    return sorted(
        file for file in Path(folder).iterdir() if file.suffix in SUFFIXES and file.is_file()
    )


def classes(path: str | os.PathLike[str]) -> set[str]:
    """Names of the classes in a file; `UNCLASSIFIED` where an area has none.

    Raises:
        errors.SlideError: as `read`.
    """
    return {name for name, _ in _features(Path(path), _parse(Path(path)))}


def within(
    tissue: geometry.MultiPolygon, width_px0: int, height_px0: int, path: str | os.PathLike[str]
) -> geometry.MultiPolygon:
    """Cut a multipolygon at the edges of its slide.

    Raises:
        errors.SlideError: nothing of it lies on the slide, so the coordinates are of another kind.
    """
    if tissue.is_empty:
        return tissue
    cut = polygons.multipolygon(
        shapely.intersection(tissue, geometry.box(0, 0, width_px0, height_px0))
    )
    if cut.is_empty:
        raise errors.SlideError(
            f"{path} outlines nothing inside the slide of {width_px0} x {height_px0} pixels; its"
            " coordinates must be level-0 pixels"
        )
    return cut


def _parse(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise errors.SlideError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise errors.SlideError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise errors.SlideError(f"{path} is no JSON") from error


def _features(path: Path, document: Any) -> Iterator[tuple[str, shapely.Geometry]]:
    """(class name, valid area) of every annotation with an area."""
    try:
        for feature in _listed(document):
            for shape in _areas(path, feature["geometry"]):
                yield _name(feature.get("properties") or {}), shape
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as error:
        raise errors.SlideError(f"{path} is no GeoJSON of annotations") from error


def _listed(document: Any) -> list[Mapping[str, Any]]:
    if isinstance(document, list):
        return document
    if document["type"] == "FeatureCollection":
        return list(document["features"])
    if document["type"] == "Feature":
        return [document]
    return [{"geometry": document}]


def _name(properties: Mapping[str, Any]) -> str:
    classification = properties.get("classification")
    if isinstance(classification, Mapping):
        return str(classification.get("name") or UNCLASSIFIED)
    return str(classification or UNCLASSIFIED)


def _areas(path: Path, shape: Mapping[str, Any] | None) -> list[shapely.Geometry]:
    if shape is None:
        return []
    if shape["type"] == "GeometryCollection":
        return [area for part in shape["geometries"] for area in _areas(path, part)]
    if shape["type"] not in _AREAS:
        return []
    area = shapely.force_2d(shapely.from_geojson(json.dumps(shape)))
    coordinates = shapely.get_coordinates(area)
    if not np.isfinite(coordinates).all():
        raise ValueError("a coordinate is not finite")
    if np.abs(coordinates).max(initial=0) > MAX_COORDINATE:
        raise errors.SlideError(f"{path} has a coordinate beyond {MAX_COORDINATE:g} pixels")
    _refuse_tangled(path, area)
    return [polygons.multipolygon(area)]


def _refuse_tangled(path: Path, area: shapely.Geometry) -> None:
    """Only of invalid areas, which would be repaired."""
    if area.is_valid:
        return
    corners, ring = shapely.get_coordinates(
        shapely.get_rings(shapely.get_parts(area)), return_index=True
    )
    joined = ring[1:] == ring[:-1]
    edges = shapely.linestrings(np.stack([corners[:-1], corners[1:]], axis=1)[joined])
    tree = shapely.STRtree(edges)
    overlaps, step = 0, 1 + (1 << 22) // (1 + len(edges))
    for at in range(0, len(edges), step):
        overlaps += tree.query(edges[at : at + step]).shape[1]
        if overlaps > MAX_OVERLAPS + OVERLAPS_PER_EDGE * len(edges):
            raise errors.SlideError(f"{path} has an outline that crosses itself without end")
