"""Tissue polygons as GeoJSON that QuPath opens: one FeatureCollection per slide.

Coordinates are level-0 pixels with y downwards, which is what QuPath calls full-resolution image
pixels. GeoJSON (RFC 7946) speaks of longitude and latitude; QuPath, and so this file, does not.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import shapely
from shapely import geometry

from pathfm_cli import artifacts, disk

CLASSIFICATION = {"name": "Tissue", "color": [0, 160, 0]}


def features(tissue: geometry.MultiPolygon) -> dict[str, Any]:
    """A FeatureCollection with one annotation per polygon, coordinates in 1/100 pixel."""
    parts = shapely.transform(shapely.get_parts(tissue), lambda xy: xy.round(2))
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": json.loads(shapely.to_geojson(part)),
                "properties": {
                    "objectType": "annotation",
                    "classification": copy.deepcopy(CLASSIFICATION),
                },
            }
            for part in parts
        ],
    }


def export(tissue: str | os.PathLike[str], folder: str | os.PathLike[str]) -> int:
    """Write `SLIDE.geojson` for every slide of a `tissue` artifact that has no error.

    Returns:
        The number of files.
    """
    frame = artifacts.read_table(tissue, "tissue").frame.filter(pl.col("error").is_null())
    for name, wkb in frame.select("slide", "geometry").iter_rows():
        text = json.dumps(features(shapely.from_wkb(wkb)), separators=(",", ":"))
        with disk.atomic(file_for(folder, name, ".geojson")) as temporary:
            temporary.write_text(text)
    return frame.height


def file_for(folder: str | os.PathLike[str], slide: str, suffix: str) -> Path:
    """The file of a slide in a folder; a slide id never leads out of the folder."""
    return Path(folder) / (slide.replace("/", "_").replace(os.sep, "_") + suffix)
