"""Hostile slides: one run of `index` over all of them; each is a row with its own error."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import badfiles
import imagecodecs
import numpy as np
import polars as pl
import pytest
import simplejpeg
from processes import pathfm

GREY = np.full((64, 64, 3), 128, np.uint8)
SMALL = np.full((32, 32, 3), 128, np.uint8)
LARGE = np.full((8192, 4096, 3), 128, np.uint8)
OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{}</OME>'
PIXELS = (
    '<Image><Pixels SizeX="{x}" SizeY="256" SizeC="{c}" Type="{t}" PhysicalSizeX="{m}" '
    'PhysicalSizeY="{m}"/></Image>'
)
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;">]>' + OME.format("&c;")
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE o [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    + OME.format("&x;")
)


def ome(text: str) -> badfiles.Make:
    return lambda folder: badfiles.pyramid(folder, description=text)


def big(count: int, offset: int = 16) -> bytes:
    """A BigTIFF whose first directory claims `count` tags."""
    return b"II+\0" + struct.pack("<HHQ", 8, 0, offset) + struct.pack("<Q", count)


def strips() -> bytes:
    tags = badfiles.slide_tags()
    for tag in (322, 323, 324, 325):
        del tags[tag]
    return badfiles.tiff(tags | {273: (4, 1, 8), 279: (4, 1, 8)}, bytes(64))


def sparse(folder: Path) -> Path:
    """A tile of 3 GiB in a file that takes no space."""
    path = badfiles.raw_slide(t325=(4, 1, 3 << 30))(folder)
    os.truncate(path, 4 << 30)
    return path


def fat(folder: Path) -> Path:
    """A tile of 64 x 64 px that claims a byte more than 1 MB."""
    path = badfiles.raw_slide(t325=(4, 1, (1 << 20) + 1))(folder)
    os.truncate(path, 2 << 20)
    return path


def shared_tables(folder: Path) -> Path:
    """Ten levels of 1x1 tiles, 15 million in all, whose tables are one hole in the file."""
    first, levels, size = 8, 10, 2 + 13 * 12 + 4
    table = first + levels * size
    data = b""
    for level in range(levels):
        width, height = 2048 - 16 * level, 1024 - 8 * level
        count = width * height
        tags = badfiles.slide_tags() | {256: (4, 1, width), 257: (4, 1, height)}
        tags |= {322: (4, 1, 1), 323: (4, 1, 1), 324: (4, count, table), 325: (4, count, table)}
        data += struct.pack("<H", len(tags))
        data += b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
        assert len(data) == level * size + size - 4
        data += struct.pack("<I", first + (level + 1) * size if level + 1 < levels else 0)
    path = badfiles.raw(b"II*\0" + struct.pack("<I", first) + data, ".tif")(folder)
    os.truncate(path, table + 4 * 2048 * 1024)
    return path


def sparse_long(folder: Path) -> Path:
    """A tile of more than 4 GiB, whose count is 8 bytes wide."""
    path = badfiles.raw_slide(t325=(16, 1, 178))(folder)
    data = bytearray(path.read_bytes())
    data[178:186] = struct.pack("<Q", 5 << 30)
    path.write_bytes(bytes(data))
    os.truncate(path, 6 << 30)
    return path


HEADERS: dict[str, tuple[badfiles.Make, str]] = {
    "empty": (badfiles.raw(b"", ".svs"), "empty"),
    "one-byte": (badfiles.raw(b"I", ".svs"), "unknown type"),
    "text": (badfiles.raw(b"hello", ".svs"), "unknown type"),
    "zeros": (badfiles.raw(bytes(9999), ".tif"), "unknown type"),
    "png": (badfiles.raw(b"\x89PNG\r\n", ".tif"), "PNG"),
    "zip": (badfiles.raw(b"PK\x03\x04", ".tif"), "ZIP"),
    "pdf": (badfiles.raw(b"%PDF-1.7", ".tif"), "PDF"),
    "hdf5": (badfiles.raw(b"\x89HDF\r\n", ".tif"), "HDF5"),
    "magic-only": (badfiles.raw(b"II*\0", ".tif"), "cut short"),
    "big-magic": (badfiles.raw(b"II+\0\x08\0\0\0", ".tif"), "cut short"),
    "no-directory": (badfiles.raw(b"II*\0" + bytes(4), ".tif"), "without an image"),
    "far-directory": (badfiles.raw(b"II*\0\xff\xff\xff\xff", ".tif"), "cut short or damaged"),
    "no-tags": (badfiles.raw(badfiles.tiff({}), ".tif"), "claims 0 tags"),
    "many-tags": (badfiles.raw(b"II*\0\x08\0\0\0\xff\xff" + bytes(99), ".tif"), "65535 tags"),
    "endless-tags": (badfiles.raw(big((1 << 64) - 1), ".tif"), "claims 18446744073709551615"),
    "loop": (
        badfiles.raw(badfiles.tiff(badfiles.slide_tags(), bytes(12288), 8), ".tif"),
        "loop",
    ),
    "strips": (badfiles.raw(strips(), ".tif"), "strips"),
    "no-width": (badfiles.raw_slide(t256=(4, 1, 0)), "not plausible"),
    "wide": (badfiles.raw_slide(t256=(4, 1, 0xFFFFFFFF)), "not plausible"),
    "many-tiles": (badfiles.raw_slide(t256=(4, 1, 1 << 24), t257=(4, 1, 1 << 24)), "not plausible"),
    "claimed-tiles": (
        badfiles.raw_slide(t324=(4, 0x7FFFFFFF, 8)),
        "lists 2147483647 tiles",
    ),
    "no-tile": (badfiles.raw_slide(t322=(4, 1, 0)), "tiles of 0x64"),
    "large-tile": (badfiles.raw_slide(t322=(4, 1, 1 << 20)), "not plausible"),
    "tile-beyond": (badfiles.raw_slide(t324=(4, 1, 0xFFFFFF00)), "beyond the end"),
    "tile-longer": (badfiles.raw_slide(t325=(4, 1, 0xFFFFFF00)), "beyond the end"),
    "sparse": (sparse, "claims 3221225472 bytes"),
    "fat": (fat, "claims 1048577 bytes"),
    "shared-tables": (shared_tables, "tiles are not plausible"),
    "sparse-long": (sparse_long, "claims 5368709120 bytes"),
    "float-offsets": (badfiles.raw_slide(t324=(11, 1, 8)), "type 11"),
    "fluorescence": (badfiles.raw_slide(t277=(3, 1, 1), t262=(3, 1, 1)), "fluorescence"),
    "sixteen-bits": (badfiles.raw_slide(t258=(3, 1, 16)), "8-bit RGB"),
    "planes": (badfiles.raw_slide(t284=(3, 1, 2)), "separate planes"),
    "compression": (badfiles.raw_slide(t259=(3, 1, 34713)), "34713"),
    "predictor": (badfiles.raw_slide(t317=(3, 1, 3)), "predictor 3"),
    "jpeg-tables": (
        badfiles.raw_slide(t259=(3, 1, 7), t347=(7, 4, 0x01020304)),
        "JPEGTables",
    ),
    "far-tables": (badfiles.raw_slide(t259=(3, 1, 7), t347=(7, 99, 0xFFFF0000)), "damaged"),
    "huge-tables": (badfiles.raw_slide(t259=(3, 1, 7), t347=(7, 0x7FFFFFFF, 8)), "claims"),
    "no-mpp": (badfiles.raw_slide(t296=(3, 1, 1)), "no trustworthy mpp"),
    "mpp-zero": (badfiles.raw_slide(t282=(4, 1, 0)), "no trustworthy mpp"),
    "mpp-tiny": (badfiles.raw_slide(t282=(4, 1, 0xFFFFFFF0)), "no trustworthy mpp"),
    "skewed": (badfiles.raw_slide(t283=(4, 1, 20000)), "no trustworthy mpp"),
    "laughs": (ome(LAUGHS), "document type or an entity"),
    "entity-file": (ome(OUTSIDE), "document type or an entity"),
    "xml-cut": (ome(OME.format("<Image>")), "cannot be read"),
    "xml-numbers": (ome(OME.format(PIXELS.format(x="9" * 9999, c=3, t="uint8", m=1))), "OME-XML"),
    "xml-other": (ome(OME.format(PIXELS.format(x=999, c=3, t="uint8", m=1))), "no image of"),
    "xml-channels": (ome(OME.format(PIXELS.format(x=256, c=9, t="uint8", m=1))), "fluorescence"),
    "xml-nan": (ome(OME.format(PIXELS.format(x=256, c=3, t="uint8", m="nan"))), "mpp"),
    "xml-inf": (ome(OME.format(PIXELS.format(x=256, c=3, t="uint8", m="inf"))), "mpp"),
    "dicom": (badfiles.raw(bytes(128) + b"DICM" + bytes(64), ".tif"), "DICOM"),
    "fifo": (badfiles.pipe_instead, "not a file"),
    "device": (badfiles.device_instead, "not a file"),
    "folder": (badfiles.folder_instead, "not a file"),
    "dangling": (badfiles.dangling_link, "does not exist"),
    "link-loop": (badfiles.link_loop, "does not exist"),
}
for share in (0.001, 0.01, 0.05, 0.3, 0.6, 0.9):

    def truncated(folder: Path, share: float = share) -> Path:
        return badfiles.cut(badfiles.pyramid(folder), share)(folder)

    HEADERS[f"truncated-{share}"] = (truncated, "cut short|end of the file|damaged")

TILES: dict[str, Callable[[], badfiles.Make]] = {
    "zlib-bomb": lambda: badfiles.with_tiles("zlib", badfiles.BOMB),
    "lzw-bomb": lambda: badfiles.with_tiles("lzw", imagecodecs.lzw_encode(bytes(16 << 20))),
    "zlib-short": lambda: badfiles.with_tiles("zlib", badfiles.zlib.compress(b"x")),
    "zlib-noise": lambda: badfiles.with_tiles("zlib", bytes(range(256))),
    "jpeg-bomb": lambda: badfiles.with_tiles("jpeg", simplejpeg.encode_jpeg(LARGE, 10)),
    "jpeg-small": lambda: badfiles.with_tiles("jpeg", simplejpeg.encode_jpeg(SMALL)),
    "jpeg-cut": lambda: badfiles.with_tiles("jpeg", simplejpeg.encode_jpeg(GREY)[:200]),
    "jpeg-none": lambda: badfiles.with_tiles("jpeg", b"\xff\xd8\xff\xd9"),
    "j2k-bomb": lambda: badfiles.with_tiles(
        "jpeg2000", imagecodecs.jpeg2k_encode(LARGE[:4096], level=1, codecformat="j2k")
    ),
    "j2k-cut": lambda: badfiles.with_tiles(
        "jpeg2000", imagecodecs.jpeg2k_encode(GREY, level=0, codecformat="j2k")[:60]
    ),
    "webp-bomb": lambda: badfiles.with_tiles("webp", imagecodecs.webp_encode(LARGE, level=1)),
    "webp-none": lambda: badfiles.with_tiles("webp", b"RIFF\0\0\0\0WEBP"),
}
"""Slides with good headers, whose tiles make `mask` fail."""


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The index of them all, and each one's error."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = ["path,slide"]
    for name, (make, _) in HEADERS.items():
        place = folder / name
        place.mkdir()
        lines.append(f"{make(place)},{name}")
    for name, make_tiles in TILES.items():
        place = folder / name
        place.mkdir()
        lines.append(f"{make_tiles()(place)},{name}")
    table = folder / "all.csv"
    table.write_text("\n".join(lines))
    out = folder / "s.parquet"
    done = pathfm("index", table, "-o", out)
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    return out, dict(pl.read_parquet(out).select("slide", "error").rows())


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_header(indexed: tuple[Path, dict[str, str]], name: str) -> None:
    error = indexed[1][name]
    assert error is not None and len(error) < 400
    assert pl.Series([error]).str.contains(HEADERS[name][1])[0], error


@pytest.fixture(scope="module")
def masked(indexed: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """The errors of `mask`, which may take little more memory than for good slides."""
    out = indexed[0].with_name("t.parquet")
    done = pathfm("mask", indexed[0], "--method", "otsu", "-o", out, "--workers", "1")
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    return dict(pl.read_parquet(out).select("slide", "error").rows())


@pytest.mark.parametrize("name", TILES)
def test_hostile_tiles(
    indexed: tuple[Path, dict[str, str]], masked: dict[str, str], name: str
) -> None:
    assert indexed[1][name] is None
    assert "tile" in masked[name] and len(masked[name]) < 400
