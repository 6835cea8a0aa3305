"""Each codec against another decoder, or against the pixels that went in."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

from pathfm_cli.wsi import codecs, roi, tiff

RNG = np.random.default_rng(0)
COARSE = np.kron(RNG.integers(0, 255, (8, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
"""(64, 128, 3): blocks of one colour, which JPEG keeps within a few grey values."""


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    """JFIF: full range BT.601."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb = 128 - 0.168736 * r - 0.331264 * g + 0.5 * b
    cr = 128 + 0.5 * r - 0.418688 * g - 0.081312 * b
    return np.rint(np.stack([y, cb, cr], -1)).clip(0, 255).astype(np.uint8)


def delta(rgb: np.ndarray) -> np.ndarray:
    return np.diff(rgb, axis=1, prepend=np.zeros_like(rgb[:, :1]))


LOSSLESS = {
    "raw": COARSE.tobytes(),
    "lzw": imagecodecs.lzw_encode(COARSE.tobytes()),
    "lzw-delta": imagecodecs.lzw_encode(delta(COARSE).tobytes()),
    "deflate": imagecodecs.zlib_encode(COARSE.tobytes()),
    "deflate-delta": imagecodecs.zlib_encode(delta(COARSE).tobytes()),
    "webp": imagecodecs.webp_encode(COARSE, lossless=True),
    "jp2k-rgb": imagecodecs.jpeg2k_encode(COARSE, codecformat="j2k", reversible=True),
}


@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_codecs(codec: str) -> None:
    np.testing.assert_array_equal(codecs.decode(LOSSLESS[codec], codec, b"", 128, 64), COARSE)


def test_33003_is_ycbcr_without_a_transform_and_33005_is_rgb() -> None:
    plain = imagecodecs.jpeg2k_encode(ycbcr(COARSE), codecformat="j2k", reversible=True, mct=False)
    found = codecs.decode(plain, "jp2k-ycbcr", b"", 128, 64).astype(int)
    assert np.abs(found - COARSE).max() <= 2
    wrong = codecs.decode(plain, "jp2k-rgb", b"", 128, 64).astype(int)
    np.testing.assert_array_equal(wrong, ycbcr(COARSE))


def jpeg(pixels: np.ndarray, subsampling: str = "444") -> bytes:
    return simplejpeg.encode_jpeg(pixels, 95, colorsubsampling=subsampling)


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
def test_jpeg_ycbcr_is_what_pillow_decodes(subsampling: str) -> None:
    data = jpeg(COARSE, subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = codecs.decode(data, "jpeg-ycbcr", codecs.jpeg_prefix("jpeg-ycbcr", b""), 128, 64)
    assert np.abs(found - expected).max() <= 1


def tiff_tiles(tmp_path, photometric: str) -> tuple[bytes, bytes]:
    """One tile as TIFF writers store it, and its tables."""
    arguments = {"level": 95}
    if photometric == "rgb":
        arguments["outcolorspace"] = "rgb"
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path,
        COARSE,
        tile=(64, 128),
        photometric="rgb",
        compression="jpeg",
        compressionargs=arguments,
        subsampling=(1, 1),
    )
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        tables = page.tags.get(tiff.JPEG_TABLES)
        with path.open("rb") as raw:
            raw.seek(page.dataoffsets[0])
            return raw.read(page.databytecounts[0]), tables.value if tables else b""


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_the_photometric_decides_the_colours(tmp_path, photometric: str) -> None:
    data, tables = tiff_tiles(tmp_path, photometric)
    codec = f"jpeg-{photometric}"
    found = codecs.decode(data, codec, codecs.jpeg_prefix(codec, tables), 128, 64).astype(int)
    assert np.abs(found - COARSE).max() <= 6


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """(marker, whole segment) up to the scan."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at : at + size]))
        at += size
    return [*found, (0xDA, data[at:])]


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_shared_tables_are_merged(padding: bytes) -> None:
    parts = segments(jpeg(COARSE))
    shared = b"".join(part for marker, part in parts if marker in (0xDB, 0xC4))
    own = b"".join(part for marker, part in parts if marker in (0xC0, 0xDA))
    prefix = codecs.jpeg_prefix("jpeg-ycbcr", b"\xff\xd8" + shared + b"\xff\xd9" + padding)
    found = codecs.decode(b"\xff\xd8" + own, "jpeg-ycbcr", prefix, 128, 64)
    np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(jpeg(COARSE)))


def test_a_jfif_marker_does_not_overrule_the_photometric(tmp_path) -> None:
    data, tables = tiff_tiles(tmp_path, "rgb")
    jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    prefix = codecs.jpeg_prefix("jpeg-rgb", tables)
    found = codecs.decode(data[:2] + jfif + data[2:], "jpeg-rgb", prefix, 128, 64).astype(int)
    assert np.abs(found - COARSE).max() <= 6


@pytest.mark.parametrize("tables", [b"x", b"\xff\xd8\xff\xdb", b"\xff\xd9"])
def test_damaged_tables(tables: bytes) -> None:
    with pytest.raises(ValueError, match="damaged JPEGTables"):
        codecs.jpeg_prefix("jpeg-rgb", tables)


ALL = {**LOSSLESS, "jpeg-ycbcr": jpeg(COARSE)}


def prefix_of(codec: str) -> bytes:
    return codecs.jpeg_prefix(codec, b"") if codec.startswith("jpeg") else b""


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (256, 64), (127, 64)])
def test_a_tile_of_another_size_is_an_error(codec: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        codecs.decode(ALL[codec], codec, prefix_of(codec), *size)


@pytest.mark.parametrize("codec", ["jpeg-ycbcr", "jp2k-rgb", "webp"])
def test_a_tile_on_its_side_is_an_error(codec: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        codecs.decode(ALL[codec], codec, prefix_of(codec), 64, 128)


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("keep", [0, 1, 3, 20, 0.5, 0.9])
def test_a_tile_cut_short_is_an_error(codec: str, keep: float) -> None:
    data = ALL[codec]
    size = keep if isinstance(keep, int) else int(len(data) * keep)
    with pytest.raises(ValueError, match=r"."):
        codecs.decode(data[:size], codec, prefix_of(codec), 128, 64)


@pytest.mark.parametrize("codec", [codec for codec in ALL if codec != "raw"])
def test_noise_is_an_error(codec: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes()
    with pytest.raises(ValueError, match=r"."):
        codecs.decode(noise, codec, prefix_of(codec), 128, 64)


def test_a_jpeg_without_its_end_marker_is_whole() -> None:
    data = jpeg(COARSE)
    assert data.endswith(b"\xff\xd9")
    found = codecs.decode(data[:-2], "jpeg-ycbcr", prefix_of("jpeg-ycbcr"), 128, 64)
    np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(data))


def test_too_large_a_tile_and_an_unknown_codec() -> None:
    with pytest.raises(ValueError, match="too large"):
        codecs.decode(b"", "raw", b"", 4097, 4096)
    with pytest.raises(ValueError, match="unknown codec"):
        codecs.decode(b"", "jpegxl"[3:], b"", 8, 8)


FLAT = np.full((4096, 6144, 3), 128, np.uint8)
"""72 MB of one grey."""


def boxed(pixels: np.ndarray) -> bytes:
    """A JP2 whose box of free space holds the head of another codestream, of 64 x 64 px."""
    data = imagecodecs.jpeg2k_encode(pixels, level=1, codecformat="jp2")
    head = b"\xff\x4f\xff\x51" + struct.pack(">HH8I", 47, 0, 64, 64, 0, 0, 64, 64, 0, 0)
    head += struct.pack(">H", 3) + b"\7\1\1" * 3
    first = 12 + int.from_bytes(data[12:16], "big")
    return data[:first] + struct.pack(">I4s", 8 + len(head), b"free") + head + data[first:]


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lzw": ("lzw", lambda: imagecodecs.lzw_encode(bytes(72 << 20))),
    "deflate": ("deflate", lambda: zlib.compress(bytes(72 << 20))),
    "webp": ("webp", lambda: imagecodecs.webp_encode(FLAT, level=1)),
    "jpeg": ("jpeg-rgb", lambda: simplejpeg.encode_jpeg(FLAT, 10)),
    "j2k": ("jp2k-rgb", lambda: imagecodecs.jpeg2k_encode(FLAT, level=1, codecformat="j2k")),
    "jp2-two": ("jp2k-rgb", lambda: boxed(FLAT)),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux measures the peak")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_memory(name: str) -> None:
    codec, make = BOMBS[name]
    data = make()
    before = memory_mb(reset=True)
    prefix = codecs.jpeg_prefix(codec, b"") if codec.startswith("jpeg") else b""
    with pytest.raises(ValueError):
        codecs.decode(data, codec, prefix, 64, 64)
    assert memory_mb() - before < 24


def memory_mb(*, reset: bool = False) -> float:
    """The most memory this process has held since it was last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def test_a_boxed_codestream_is_read() -> None:
    data = imagecodecs.jpeg2k_encode(COARSE, codecformat="jp2", reversible=True)
    np.testing.assert_array_equal(codecs.decode(data, "jp2k-rgb", b"", 128, 64), COARSE)


def test_scans_without_end() -> None:
    """Each scan of 10 bytes would take as long as the image."""
    good = io.BytesIO()
    Image.fromarray(COARSE).save(good, "JPEG", progressive=True)
    prefix = codecs.jpeg_prefix("jpeg-ycbcr", b"")
    assert codecs.decode(good.getvalue(), "jpeg-ycbcr", prefix, 128, 64).shape == (64, 128, 3)
    last = good.getvalue().rindex(b"\xff\xda")
    data = good.getvalue()[:-2] + 100 * good.getvalue()[last:-2] + b"\xff\xd9"
    with pytest.raises(ValueError, match="a JPEG of 110 scans"):
        codecs.decode(data, "jpeg-ycbcr", prefix, 128, 64)
    out = np.empty((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="a JPEG of 110 scans"):
        roi.decode_region(data, "jpeg-ycbcr", prefix, 128, 64, 0, 0, 8, 8, out)
