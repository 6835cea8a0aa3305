"""TCGA slides from a manifest of the Genomic Data Commons, read where they lie in the open.

The manifest is tab-separated: id, filename, md5, size, state. A file of the public bucket has the
key `<id>/<filename>`. What a barcode says: TCGA-2J-AAB6-01A-01-TS1 is slide TS1 of sample 01A of
patient (case) TCGA-2J-AAB6. DX slides are diagnostic, of tissue fixed in formalin; TS, MS and BS
are top, middle and bottom sections of frozen tissue (GDC Docs, "TCGA Barcode").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pathfm_cli import errors, parquet
from pathfm_cli.data import metadata, sources

BUCKET = "s3://tcga-2-open"
COLUMNS = ("id", "filename", "md5", "size", "state")
PREPARATIONS = {"DX": "ffpe", "TS": "frozen", "MS": "frozen", "BS": "frozen"}
_BARCODE = re.compile(r"(?P<case>TCGA-\w{2}-\w{4})-(?P<sample>\d{2}[A-Z])-\d{2}-(?P<kind>[A-Z]{2})")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SIZE = re.compile(r"[0-9]{1,18}")


def read(path: Path) -> tuple[list[sources.Source], tuple[str, ...]]:
    """The slides of a manifest, and sentences about what was left out.

    Their columns are `case`, `sample`, `slide_kind`, `preparation`, `gdc_id` and `md5`.

    Raises:
        errors.InputError: it is missing, no manifest, or lists no slide.
        errors.UsageError: two slides share a name.
    """
    frame = _table(path)
    rows = list(frame.iter_rows(named=True))
    slides = [row for row in rows if row["filename"].lower().endswith(sources.READABLE)]
    if not slides:
        raise errors.InputError(
            f"{path} lists no slide among its {len(rows)} files.",
            "in the portal: Data Type, Slide Image",
        )
    bad = next((row for row in slides if not _whole(row)), None)
    if bad is not None:
        raise errors.InputError(f"{path} has a damaged row: {bad['id']} {bad['filename']}.")
    notes = []
    if left := len(rows) - len(slides):
        notes.append(f"{left} of {len(rows)} files of {path} are no slides: left out")
    found = sources.unique(_source(row) for row in slides)
    unnamed = [source.slide for source in found if source.columns["case"] is None]
    if unnamed:
        notes.append(f"{len(unnamed)} slides have no TCGA barcode, such as {unnamed[0]}")
    return found, tuple(notes)


def barcode(name: str) -> dict[str, str | None]:
    """`case`, `sample`, `slide_kind` and `preparation` of a file name; None where it tells none."""
    match = _BARCODE.match(name)
    if match is None:
        return dict.fromkeys(("case", "sample", "slide_kind", "preparation"))
    return {
        "case": match["case"],
        "sample": f"{match['case']}-{match['sample']}",
        "slide_kind": match["kind"],
        "preparation": PREPARATIONS.get(match["kind"]),
    }


def _table(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise errors.InputError(f"{path} does not exist.", "download it from the GDC portal")
    try:
        metadata.refuse_packed(path)
        with parquet.guard():
            frame = pl.read_csv(path, separator="\t", infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise errors.InputError(f"{path} cannot be read as a manifest.") from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise errors.InputError(
            f"{path} is no GDC manifest: it has no column {missing[0]}.",
            f"its columns are {', '.join(COLUMNS)}, separated by tabs",
        )
    return frame.select(pl.col(name).fill_null("") for name in COLUMNS)


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether the row can name an object: nothing of it may lead out of the bucket's layout."""
    name = row["filename"]
    return (
        bool(_ID.fullmatch(row["id"]) and _SIZE.fullmatch(row["size"]))
        and "/" not in name
        and name.isprintable()
    )


def _source(row: Mapping[str, Any]) -> sources.Source:
    name = row["filename"]
    columns = {**barcode(name), "gdc_id": row["id"], "md5": row["md5"]}
    uri = f"{BUCKET}/{row['id']}/{name}"
    return sources.Source(sources.slide_id(name), uri, columns, int(row["size"]))
