"""DICOM slides: real files against openslide, and written ones whose tiles are known."""

import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import polars as pl
import pytest
import servers
import simplejpeg

from pathfm_cli import errors
from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import dicom, remote, series, store

pydicom = pytest.importorskip("pydicom")
from pydicom import dataset, encaps, filewriter, uid  # noqa: E402

WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
TILE = 64


def tissue(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that JPEG keeps them."""
    random = np.random.default_rng(seed)
    small = random.integers(60, 220, (height // 16 + 2, width // 16 + 2, 3)).astype(np.uint8)
    return np.kron(small, np.ones((16, 16, 1), np.uint8))[:height, :width]


def tiles_of(pixels: np.ndarray) -> list[np.ndarray]:
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
    rows = [padded[y : y + TILE] for y in range(0, height, TILE)]
    return [np.ascontiguousarray(r[:, x : x + TILE]) for r in rows for x in range(0, width, TILE)]


ENCODERS: dict[str, tuple[str, str, Callable[[np.ndarray], bytes]]] = {
    "jpeg": (uid.JPEGBaseline8Bit, "YBR_FULL_422", lambda t: simplejpeg.encode_jpeg(t, 95)),
    "j2k": (uid.JPEG2000, "YBR_ICT", lambda t: imagecodecs.jpeg2k_encode(t, level=0, mct=True)),
    "j2k-rgb": (uid.JPEG2000, "RGB", lambda t: imagecodecs.jpeg2k_encode(t, level=0, mct=False)),
    "raw": (uid.ExplicitVRLittleEndian, "RGB", lambda t: t.tobytes()),
    "raw-implicit": (uid.ImplicitVRLittleEndian, "RGB", lambda t: t.tobytes()),
}


def write(
    path: Path,
    pixels: np.ndarray,
    code: str = "jpeg",
    *,
    present: Sequence[int] | None = None,
    offsets: str = "basic",
    spacing_mm: float = 0.0005,
    **changes: object,
) -> None:
    """Write one level; `present` numbers the tiles of a sparse one, in the order of its frames."""
    syntax, colours, encode = ENCODERS[code]
    tiles = tiles_of(pixels)
    frames = [encode(tiles[number]) for number in present or range(len(tiles))]
    meta = dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = WSI
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=[path.name])
    header = dataset.Dataset()
    header.file_meta = meta
    header.SOPClassUID, header.SOPInstanceUID = WSI, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID = "1.2.3"
    header.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    header.SamplesPerPixel, header.BitsAllocated, header.BitsStored = 3, 8, 8
    header.PhotometricInterpretation, header.PlanarConfiguration = colours, 0
    header.Rows = header.Columns = TILE
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = pixels.shape[:2]
    header.NumberOfFrames = len(frames)
    measures, shared = dataset.Dataset(), dataset.Dataset()
    measures.PixelSpacing = [spacing_mm, spacing_mm]
    shared.PixelMeasuresSequence = [measures]
    header.SharedFunctionalGroupsSequence = [shared]
    optics = dataset.Dataset()
    optics.ObjectiveLensPower = 20
    header.OpticalPathSequence = [optics]
    header.DimensionOrganizationType = "TILED_FULL" if present is None else "TILED_SPARSE"
    if present is not None:
        header.PerFrameFunctionalGroupsSequence = [
            group(number, -(-pixels.shape[1] // TILE)) for number in present
        ]
    if code.startswith("raw"):
        header.PixelData = b"".join(frames)
    elif offsets == "extended":
        data, table, lengths = encaps.encapsulate_extended(frames)
        header.PixelData = data
        header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = table, lengths
    else:
        count = 2 if offsets == "split" else 1
        header.PixelData = encaps.encapsulate(frames, count, has_bot=offsets != "none")
    header["PixelData"].VR = "OB"
    for name, value in changes.items():
        setattr(header, name, value)
    path.parent.mkdir(exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def group(number: int, columns: int) -> dataset.Dataset:
    place, found = dataset.Dataset(), dataset.Dataset()
    place.ColumnPositionInTotalImagePixelMatrix = number % columns * TILE + 1
    place.RowPositionInTotalImagePixelMatrix = number // columns * TILE + 1
    found.PlanePositionSlideSequence = [place]
    return found


def opened(folder: Path, out: Path) -> cohort.Cohort:
    index.index([str(folder)], out, overwrite=True)
    return cohort.open_cohort(out)


def error(folder: Path, out: Path) -> str:
    index.index([str(folder)], out, overwrite=True)
    (row,) = pl.read_parquet(out).iter_rows(named=True)
    assert row["error"], row
    return row["error"]


def test_real_slides_equal_openslide(formats_folder: Path, tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    name = "dicom-CMU-1-Small-Region"
    found = opened(formats_folder / name, tmp_path / "s.parquet")
    (slide,) = found.slides
    assert (slide.slide, slide.mpp, slide.uri) == (name, 0.499, f"{formats_folder / name}/")
    row = found.table.frame.row(0, named=True)
    assert (row["vendor"], row["mpp_source"], row["compression"]) == (
        "dicom",
        "dicom",
        "jpeg-ycbcr",
    )
    (level,) = slide.levels
    ours = found.reader.read_region(slide, 0, 0, 0, level.width_px, level.height_px)
    first = min((formats_folder / name).glob("*.dcm"))
    theirs = openslide.OpenSlide(first).read_region((0, 0), 0, ours.shape[1::-1]).convert("RGB")
    assert (ours == np.asarray(theirs)).all()
    # RGB JPEG under a YBR tag, which openslide refuses: the stream's own marker is believed.
    other = opened(formats_folder / "dicom-j2k-CMU-1-Small-Region", tmp_path / "t.parquet")
    (slide,) = other.slides
    again = other.reader.read_region(slide, 0, 0, 0, level.width_px, level.height_px)
    assert np.abs(again.astype(int) - ours).mean() < 4  # 50 if taken for YCbCr


def test_a_file_stands_for_its_folder(formats_folder: Path, tmp_path: Path) -> None:
    files = sorted((formats_folder / "dicom-CMU-1-Small-Region").glob("*.dcm"))
    done = index.index([str(file) for file in files], tmp_path / "s.parquet")
    assert (done.record["rows"], done.record["failed"]) == (1, 0)


@pytest.mark.parametrize("code", ENCODERS)
@pytest.mark.parametrize("offsets", ["basic", "extended", "none"])
def test_levels_and_frames(tmp_path: Path, code: str, offsets: str) -> None:
    folder = tmp_path / "series"
    fine, coarse = tissue(300, 200), tissue(150, 100, 1)
    write(folder / "z.dcm", fine, code, offsets=offsets)
    write(folder / "a.dcm", coarse, code, offsets=offsets, spacing_mm=0.001)
    label = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    write(folder / "m.dcm", tissue(64, 64), ImageType=label)
    found = opened(folder, tmp_path / "s.parquet")
    (slide,) = found.slides
    assert [(level.width_px, level.height_px) for level in slide.levels] == [(300, 200), (150, 100)]
    assert (slide.mpp, found.table.frame["objective"][0]) == (0.5, 20.0)
    for number, pixels in enumerate((fine, coarse)):
        height, width, _ = pixels.shape
        ours = found.reader.read_region(slide, 0, 0, number, width, height)
        gap = np.abs(ours.astype(int) - pixels)
        assert gap.max() <= (0 if code != "jpeg" else 60)
        assert gap.mean() < 2
    patch = found.reader.read_patch(slide, 10, 20, 0.5, 100)
    assert np.abs(patch.astype(int) - fine[20:120, 10:110]).mean() < 2


def test_a_sparse_level_is_white_where_it_has_no_tile(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    pixels = tissue(300, 200)
    write(folder / "a.dcm", pixels, "j2k", present=(7, 2, 19))
    found = opened(folder, tmp_path / "s.parquet")
    ours = found.reader.read_region(found.slides[0], 0, 0, 0, 300, 200)
    expected = np.full((200, 300, 3), 255, np.uint8)
    for number in (7, 2, 19):
        y, x = number // 5 * TILE, number % 5 * TILE
        expected[y : y + TILE, x : x + TILE] = pixels[y : y + TILE, x : x + TILE]
    assert (ours == expected).all()


def test_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto")
    folder = tmp_path / "8f3c"
    write(folder / "a.dcm", tissue(300, 200))
    write(folder / "b.dcm", tissue(150, 100), spacing_mm=0.001)
    local = opened(folder, tmp_path / "s.parquet")
    for name in servers.KEYS:
        monkeypatch.delenv(name, raising=False)
    with servers.s3() as address:
        bodies = {f"8f3c/{file.name}": file.read_bytes() for file in folder.iterdir()}
        servers.bucket(address, "idc-open-data", bodies)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        remote.client.cache_clear()
        index.index(["s3://idc-open-data/8f3c/"], tmp_path / "r.parquet")
        found = cohort.open_cohort(tmp_path / "r.parquet")
        (slide,) = found.slides
        assert (slide.slide, slide.uri) == ("8f3c", "s3://idc-open-data/8f3c/")
        for level, size in enumerate(((300, 200), (150, 100))):
            ours = found.reader.read_region(slide, 0, 0, level, *size)
            assert (ours == local.reader.read_region(local.slides[0], 0, 0, level, *size)).all()
        servers.bucket(address, "idc-open-data", {"8f3c/b.dcm": b"other"})
        store.forget(slide.uri)
        with pytest.raises(errors.SlideError, match="has changed since it was indexed"):
            found.reader.read_region(slide, 0, 0, 1, 50, 50)
    remote.client.cache_clear()


def test_a_file_more_is_another_version(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    write(folder / "a.dcm", tissue(300, 200))
    found = opened(folder, tmp_path / "s.parquet")
    assert "up to date" in index.index([str(folder)], tmp_path / "s.parquet").notes[-1]
    write(folder / "b.dcm", tissue(150, 100), spacing_mm=0.001)
    store.forget(f"{folder}/")
    with pytest.raises(errors.SlideError, match="has changed since it was indexed"):
        found.reader.read_region(found.slides[0], 0, 0, 0, 9, 9)
    assert len(opened(folder, tmp_path / "s.parquet").slides[0].levels) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"SamplesPerPixel": 1}, "1 samples of 8 bits"),
        ({"NumberOfFrames": 19}, "more fragments than frames"),
        ({"NumberOfFrames": 19, "code": "raw"}, "19 frames for 20 tiles (tiled full)"),
        ({"NumberOfFrames": 21}, "21 frames for 20 tiles"),
        ({"TotalPixelMatrixFocalPlanes": 3}, "3 focal planes"),
        ({"ConcatenationUID": "1.2", "InConcatenationTotalNumber": 2}, "concatenation"),
        ({"PhotometricInterpretation": "MONOCHROME2"}, "with MONOCHROME2 colours"),
        (
            {"SharedFunctionalGroupsSequence": [], "OpticalPathSequence": []},
            "no trustworthy mpp (the file states none)",
        ),
        ({"Rows": 0}, "tiles of 64x0 px are not plausible"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"]}, "without a slide image"),
        ({"offsets": "split"}, "in several fragments"),
        ({"present": [3, 3]}, "several frames at one place"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict, sentence: str) -> None:
    if "NumberOfFrames" in changes:
        changes = {**changes, "offsets": "none"}
    write(tmp_path / "series" / "a.dcm", tissue(300, 200), **changes)
    assert sentence in error(tmp_path / "series", tmp_path / "s.parquet")


def test_folders_that_are_no_slide(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    write(folder / "a.dcm", tissue(300, 200))
    write(folder / "b.dcm", tissue(150, 100), SeriesInstanceUID="1.2.4")
    assert "several series" in error(folder, tmp_path / "s.parquet")
    (folder / "b.dcm").write_bytes(b"no dicom")
    assert "b.dcm is damaged, or no DICOM slide" in error(folder, tmp_path / "s.parquet")
    (folder / "b.dcm").unlink()
    whole = (folder / "a.dcm").read_bytes()
    for size in (100, 200, len(whole) // 3, len(whole) - 900):
        (folder / "a.dcm").write_bytes(whole[:size])
        assert error(folder, tmp_path / "s.parquet")


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_mutated_headers_are_errors_or_read_in_bounds(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    write(folder / "a.dcm", tissue(130, 70))
    whole = (folder / "a.dcm").read_bytes()
    random = np.random.default_rng(3)
    read = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(132, 1500, int(random.integers(1, 4))).tolist():
            data[place] ^= 1 << int(random.integers(8))
        (folder / "a.dcm").write_bytes(data)
        found = opened(folder, tmp_path / "s.parquet")
        for slide in found.slides:
            read += 1
            try:
                assert found.reader.read_region(slide, 0, 0, 0, 130, 70).shape == (70, 130, 3)
            except errors.SlideError:
                continue
    assert 0 < read < 150


def bomb(folder: Path, syntax: str, body: bytes) -> None:
    """A file that is only its meta information and these bytes."""
    meta = dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, WSI
    meta.MediaStorageSOPInstanceUID = "1.2"
    with (folder / "x.dcm").open("wb") as file:
        file.write(bytes(128) + b"DICM")
        filewriter.write_file_meta_info(file, meta)
        file.write(body)


@pytest.mark.parametrize("items", [b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0"])
def test_items_without_end(tmp_path: Path, items: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "MAX_ITEMS", 9999)
    head = b"\x08\0\x40\x11\xff\xff\xff\xff"
    bomb(tmp_path, uid.ImplicitVRLittleEndian, head + 20_000 * (items + bytes(4)))
    assert "more than 9999 items are not plausible" in error(tmp_path, tmp_path / "s.parquet")


def test_a_deflated_header_is_never_inflated(tmp_path: Path) -> None:
    """64 MB of zeros in 64 kB; memory is measured where Python allocates it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = struct.pack("<HH2sHI", 8, 5, b"OB", 0, 0xF0000000)
    body = packer.compress(head + bytes(64 << 20)) + packer.flush()
    bomb(tmp_path, uid.DeflatedExplicitVRLittleEndian, body)
    with pytest.raises(errors.SlideError, match="a deflated DICOM file"):
        dicom.describe(series.Series.open(f"{tmp_path}/"), "x")
    tracemalloc.start()
    with pytest.raises(errors.SlideError):
        dicom.headers(series.Series.open(f"{tmp_path}/"), "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_FILES", 2)
    for name in "abc":
        (tmp_path / f"{name}.dcm").touch()
    with pytest.raises(errors.SlideError, match="holds more than 2 .dcm files"):
        series.Series.open(f"{tmp_path}/")


def test_too_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "MAX_FRAMES", 3)
    write(tmp_path / "0.dcm", tissue(128, 128))
    assert "4 tiles are not plausible" in error(tmp_path, tmp_path / "s.parquet")


def test_a_series_reads_across_its_files(tmp_path: Path) -> None:
    for name, body in (("b.dcm", b"34567"), ("a.dcm", b"012"), ("c.dcm", b"89"), ("x.txt", b"?")):
        (tmp_path / name).write_bytes(body)
    whole = store.Source.open(f"{tmp_path}/")
    assert isinstance(whole, series.Series)
    assert (whole.size, whole.read(0, 10), whole.read(2, 4)) == (10, b"0123456789", b"2345")
    assert whole.read_many([(8, 2), (0, 3), (3, 1), (5, 3)]) == [b"89", b"012", b"3", b"567"]
    with pytest.raises(errors.SlideError, match="it ends at byte 10"):
        whole.read(9, 2)
    with pytest.raises(errors.SlideError, match="holds no .dcm file"):
        (tmp_path / "empty").mkdir()
        store.Source.open(f"{tmp_path}/empty/")
    with pytest.raises(errors.SlideError, match="does not exist"):
        store.Source.open(f"{tmp_path}/absent/")


def test_without_the_extra_the_row_says_so(tmp_path: Path) -> None:
    write(tmp_path / "series" / "a.dcm", tissue(130, 70))
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from pathlib import Path; from pathfm_cli.data import index\n"
        "done = index.index([sys.argv[1]], Path(sys.argv[2]))\n"
        "sys.stdout.write(done.failures[0][1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "series"), str(tmp_path / "s.parquet")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == "a DICOM slide, which needs an extra: pip install 'pathfm[dicom]'"
