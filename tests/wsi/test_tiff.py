"""Our parser against tifffile, and against files that lie."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pathfm_cli import errors
from pathfm_cli.wsi import store, tiff

REAL = [
    "slides/*.svs",
    "slides/*.tif",
    "formats/*.tiff",
    "formats/openslide-fixtures/*.svs",
    "formats/openslide-fixtures/*.tiff",
    "formats/*.ndpi",
]


def same(ours: tiff.Directory, theirs: tifffile.TiffPage) -> None:
    assert ours.number(tiff.IMAGE_WIDTH) == theirs.imagewidth
    assert ours.number(tiff.IMAGE_LENGTH) == theirs.imagelength
    assert ours.number(tiff.COMPRESSION, 1) == theirs.compression
    assert ours.number(tiff.PHOTOMETRIC) == theirs.photometric
    assert ours.text(tiff.IMAGE_DESCRIPTION).rstrip() == theirs.description.rstrip()
    if tiff.TILE_OFFSETS in theirs.tags:
        assert ours.array(tiff.TILE_OFFSETS).tolist() == list(theirs.dataoffsets)
        assert ours.array(tiff.TILE_BYTE_COUNTS).tolist() == list(theirs.databytecounts)
    if (resolution := theirs.tags.get(tiff.X_RESOLUTION)) is not None:
        top, bottom = resolution.value
        assert ours.rational(tiff.X_RESOLUTION) == pytest.approx(top / bottom, rel=1e-12)
    tables = theirs.tags.get(tiff.JPEG_TABLES)
    assert ours.data(tiff.JPEG_TABLES) == (tables.value if tables else b"")


@pytest.mark.parametrize("pattern", REAL)
def test_real_files_read_as_by_tifffile(slides_folder: Path, pattern: str) -> None:
    paths = sorted(slides_folder.parent.glob(pattern))
    assert paths
    for path in paths:
        ours = tiff.directories(store.Source.open(str(path)))
        with tifffile.TiffFile(path) as file:
            series = list(file.pages)
            assert len(ours) == len(series)
            for directory, page in zip(ours, series, strict=True):
                same(directory, page)
                children = page.pages or []
                assert len(directory.children) == len(children)
                for child, sub in zip(directory.children, children, strict=True):
                    same(child, sub.aspage())


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_both_byte_orders_and_sizes_with_subifds(
    tmp_path: Path, byteorder: str, bigtiff: bool
) -> None:
    path = tmp_path / "x.tif"
    pixels = np.arange(96 * 80 * 3, dtype=np.uint8).reshape(80, 96, 3)
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as file:
        file.write(pixels, tile=(16, 32), photometric="rgb", subifds=2, description="one")
        file.write(pixels[::2, ::2], tile=(16, 16), photometric="rgb", subfiletype=1)
        file.write(pixels[::4, ::4], tile=(16, 16), photometric="rgb", subfiletype=1)
        file.write(pixels[:, :, 0], photometric="minisblack", description="two")
    source = store.Source.open(str(path))
    first, second = tiff.directories(source)
    assert (first.number(tiff.IMAGE_WIDTH), first.number(tiff.TILE_LENGTH)) == (96, 16)
    assert [child.number(tiff.IMAGE_WIDTH) for child in first.children] == [48, 24]
    assert (first.text(tiff.IMAGE_DESCRIPTION), second.text(tiff.IMAGE_DESCRIPTION)) == (
        "one",
        "two",
    )
    assert first.numbers(tiff.BITS_PER_SAMPLE, 8) == (8, 8, 8)
    with tifffile.TiffFile(path) as file:
        assert first.array(tiff.TILE_OFFSETS).tolist() == list(file.pages[0].dataoffsets)
    assert len(tiff.directories(source, limit=1)) == 1


def test_only_directories_are_read(slides_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[int, int]] = []
    read = store.Local.read
    monkeypatch.setattr(
        store.Local, "read", lambda self, *asked: ranges.append(asked) or read(self, *asked)
    )
    source = store.Source.open(str(slides_folder / "BS27_duodenum_HE_40x_ycc422.svs"))
    first = tiff.directories(source)[0]
    assert 0 < sum(length for _, length in ranges) < 3000
    ranges.clear()
    first.array(tiff.TILE_OFFSETS)
    assert len(ranges) == 1


def written(path: Path, data: bytes) -> store.Source:
    path.write_bytes(data)
    return store.Source.open(str(path))


def little(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A classic TIFF with one directory at 8."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following)


def test_a_loop_is_an_error(tmp_path: Path) -> None:
    source = written(tmp_path / "x.tif", little((256, 4, 1, 5), following=8))
    with pytest.raises(errors.SlideError, match="loop"):
        tiff.directories(source)


def test_a_subifd_that_points_to_its_parent_is_a_loop(tmp_path: Path) -> None:
    source = written(tmp_path / "x.tif", little((330, 4, 1, 8)))
    with pytest.raises(errors.SlideError, match="loop"):
        tiff.directories(source)


def test_too_many_directories(tmp_path: Path) -> None:
    data = b"II*\0" + struct.pack("<I", 8)
    for number in range(1030):
        data += struct.pack("<HHHIII", 1, 256, 4, 1, 5, 8 + (number + 1) * 18)
    source = written(tmp_path / "x.tif", data + bytes(18))
    with pytest.raises(errors.SlideError, match="more than 1024"):
        tiff.directories(source)


@pytest.mark.parametrize("count", [0, 4097, 65535])
def test_an_implausible_number_of_tags(tmp_path: Path, count: int) -> None:
    data = b"II*\0" + struct.pack("<IH", 8, count) + bytes(1 << 20)
    with pytest.raises(errors.SlideError, match=f"claims {count} tags"):
        tiff.directories(written(tmp_path / "x.tif", data))


def test_a_value_beyond_the_file_or_the_limit(tmp_path: Path) -> None:
    source = written(tmp_path / "x.tif", little((324, 4, 1000, 8), (325, 16, 1 << 31, 8)))
    (directory,) = tiff.directories(source)
    with pytest.raises(errors.SlideError, match="it ends at byte"):
        directory.array(tiff.TILE_OFFSETS)
    with pytest.raises(errors.SlideError, match="tag 325 claims 17179869184 bytes"):
        directory.array(tiff.TILE_BYTE_COUNTS)


@pytest.mark.parametrize("kind", [2, 5, 6, 8, 9, 10, 11, 12, 17])
def test_tile_offsets_are_unsigned(tmp_path: Path, kind: int) -> None:
    source = written(tmp_path / "x.tif", little((324, kind, 2, 8)) + bytes(99))
    (directory,) = tiff.directories(source)
    with pytest.raises(errors.SlideError, match=f"tag 324 has type {kind}"):
        directory.array(tiff.TILE_OFFSETS)


def test_floats_and_unknown_types_are_no_numbers(tmp_path: Path) -> None:
    nan = struct.unpack("<I", struct.pack("<f", float("nan")))[0]
    source = written(tmp_path / "x.tif", little((256, 11, 1, nan), (257, 99, 1, 7)))
    (directory,) = tiff.directories(source)
    assert directory.number(tiff.IMAGE_WIDTH, 3) == 3
    assert directory.number(tiff.IMAGE_LENGTH, 3) == 3


def test_every_cut_of_a_slide_is_an_error_or_reads(formats_folder: Path, tmp_path: Path) -> None:
    whole = (formats_folder / "openslide-fixtures" / "small.svs").read_bytes()
    for size in range(0, len(whole), 97):
        source = written(tmp_path / "cut.svs", whole[:size])
        try:
            assert 1 <= len(tiff.directories(source)) <= 2
        except errors.SlideError as error:
            assert "cut.svs" in str(error)
