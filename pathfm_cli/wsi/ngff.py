"""Slides in the words of Zarr 3 and OME-NGFF 0.5: the `zarr.json` of groups and arrays.

Axes are channel, y, x, the order that NGFF asks for. Positions are micrometres from the centre of
the first level-0 pixel, so a coarser level, whose first pixel lies deeper, is translated.
"""

from __future__ import annotations

from typing import Any

from pathfm_cli.wsi import slide, zarr_codec

AXES = (
    {"name": "c", "type": "channel"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
)
FILL = 255
"""Value of pixels whose tile is missing: white."""


def root(identity: str) -> dict[str, Any]:
    """The group of all slides; `identity` is the id of the artifact."""
    return _group({"pathfm": {"id": identity}})


def image(found: slide.Slide) -> dict[str, Any]:
    """The group of one slide."""
    multiscale = {
        "name": found.slide,
        "axes": list(AXES),
        "datasets": [
            {"path": str(number), "coordinateTransformations": _place(found, level)}
            for number, level in enumerate(found.levels)
        ],
    }
    ome = {"version": "0.5", "multiscales": [multiscale], "omero": _rendering()}
    return _group({"ome": ome, "slide": found.slide, "uri": found.uri, "mpp": found.mpp})


def array(found: slide.Slide, number: int, prefix: bytes) -> dict[str, Any]:
    """One level: (3, height, width) uint8 in chunks of one tile.

    Args:
        found: the slide.
        number: of the level.
        prefix: what goes before the data of its tiles, see `codecs`.
    """
    level = found.levels[number]
    tile = zarr_codec.TileCodec(level.codec, prefix)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [3, level.height_px, level.width_px],
        "data_type": "uint8",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [3, level.tile_height_px, level.tile_width_px]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": FILL,
        # Tiles are (height, width, 3).
        "codecs": [{"name": "transpose", "configuration": {"order": [1, 2, 0]}}, tile.to_dict()],
        "attributes": {"mpp": found.mpp * level.downsample},
        "dimension_names": ["c", "y", "x"],
    }


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _place(found: slide.Slide, level: slide.Level) -> list[dict[str, Any]]:
    scale_x, scale_y = level.scale
    return [
        {"type": "scale", "scale": [1.0, found.mpp * scale_y, found.mpp * scale_x]},
        {
            "type": "translation",
            "translation": [
                0.0,
                found.mpp * (scale_y - 1) / 2,
                found.mpp * (scale_x - 1) / 2,
            ],
        },
    ]


def _rendering() -> dict[str, Any]:
    """Colours of the channels, for viewers that would show three grey images."""
    return {
        "channels": [
            {
                "label": label,
                "color": colour,
                "active": True,
                "window": {"min": 0, "max": 255, "start": 0, "end": 255},
            }
            for label, colour in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
        ],
        "rdefs": {"model": "color"},
    }
