"""The kinds of artifact and the columns each table has, with units. Imports nothing of pathfm."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: polars dtype by name, unit ("" if none), meaning."""

    name: str
    dtype: str
    unit: str
    doc: str


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One kind of artifact: the verb that makes it, what it is, columns every file has."""

    name: str
    verb: str
    doc: str
    columns: tuple[Column, ...]
    optional: tuple[Column, ...] = ()
    """Columns that a file has where they are known."""


_SLIDES = (
    Column("slide", "String", "", "slide id, unique in the table"),
    Column("uri", "String", "", "where the file lies: a path or a URL"),
    Column("size_bytes", "Int64", "bytes", "file size when it was indexed"),
    Column("etag", "String", "", "version of the file: store etag, or modification time in ns"),
    Column("vendor", "String", "", "aperio, ome, generic-tiff, dicom, openslide:NAME"),
    Column("width_px0", "Int64", "px", "width at level 0"),
    Column("height_px0", "Int64", "px", "height at level 0"),
    Column("mpp", "Float64", "um/px", "micrometres per pixel at level 0"),
    Column(
        "mpp_source",
        "String",
        "",
        "aperio, ome, dicom, openslide, resolution-tag, appmag, override",
    ),
    Column("objective", "Float64", "x", "nominal objective power, a label only"),
    Column("compression", "String", "", "codec of the level-0 tiles"),
    Column("stain", "String", "", "stain, from the metadata table"),
    Column("levels", "List(Struct)", "px", "pyramid levels and their rows in the tile table"),
    Column("error", "String", "", "why the slide cannot be used; null when it can"),
)
_TISSUE = (
    Column("geometry", "Binary", "px", "tissue as WKB multipolygon, level-0 pixels (GeoParquet)"),
    Column("tissue_area_mm2", "Float64", "mm2", "area of the polygons"),
    Column("tissue_method", "String", "", "how the tissue was found"),
    Column("tissue_doubt", "Float64", "bit", "the network's mean entropy where tissue may be"),
)
_PLACE = (
    Column("slide", "String", "", "slide id"),
    Column("x_px0", "Float64", "px", "left edge, level-0 pixels"),
    Column("y_px0", "Float64", "px", "top edge, level-0 pixels"),
    Column("mpp", "Float64", "um/px", "resolution of the patch"),
)
KINDS = {
    kind.name: kind
    for kind in (
        Kind("slides", "index", "one row per slide, and a tile table beside it", _SLIDES),
        Kind("tissue", "mask", "the slides with their foreground polygons", _SLIDES + _TISSUE),
        Kind(
            "patches",
            "sample",
            "patch positions; the slides travel in the file's metadata",
            (
                *_PLACE,
                Column("size_px", "Int64", "px", "side of the square patch at its mpp"),
                Column("tissue_fraction", "Float64", "1", "share of the patch inside tissue"),
            ),
        ),
        Kind("segmenter", "mask-train", "a U-Net that finds tissue: safetensors", ()),
        Kind("checkpoint", "pretrain", "an encoder: safetensors, timm's parameter names", ()),
        Kind(
            "embeddings",
            "embed",
            "one row per image",
            (
                Column("id", "String", "", "image id, unique in the table"),
                Column(
                    "embedding",
                    "Array(Float32)",
                    "",
                    "the feature vector (K), or patch tokens (T x K); null if it failed",
                ),
                Column("error", "String", "", "why the image failed; null when it did not"),
            ),
            (
                Column("label", "String", "", "class of the image"),
                Column("split", "String", "", "train, val, test or another part"),
                Column("group", "String", "", "what stays together in folds, as a patient"),
                *_PLACE,
            ),
        ),
        Kind(
            "scores",
            "probe, segment or odcorr",
            "one row per metric, split and run",
            (
                Column("metric", "String", "", "name of the metric"),
                Column("split", "String", "", "what it was measured on"),
                Column(
                    "run", "Int64", "", "run number, or step of an export; null for the summary"
                ),
                Column("value", "Float64", "", "the number"),
            ),
        ),
        Kind(
            "regions",
            "segment --apply",
            "what a decoder found on slides, one row a polygon",
            (
                Column("slide", "String", "", "slide id"),
                Column("label", "String", "", "class; null if a patch could not be read"),
                Column("geometry", "Binary", "px", "WKB polygon, level-0 pixels"),
                Column("area_um2", "Float64", "um2", "area of the polygon"),
                Column("error", "String", "", "which patch could not be read, and why; else null"),
            ),
        ),
        Kind(
            "predictions",
            "probe",
            "what a probe predicted for each reported image",
            (
                Column("id", "String", "", "image id; null where the embeddings had none"),
                Column("label", "String", "", "class of the image"),
                Column("unit", "Int64", "", "number of what is resampled together, as a patient"),
                Column("predicted", "Array(Int64)", "", "class that each run takes, (R,)"),
                Column("probability", "Array(Float32)", "1", "of each class by each run, (R x C,)"),
            ),
        ),
    )
}
