"""The virtual Zarr: the reader's pixels, the keys and metadata of Zarr 3 and OME-NGFF."""

import asyncio
import importlib
import json
import pickle
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from ramps import MakePyramid, ramp
from zarr.abc import store as zarr_store
from zarr.core import buffer, sync

from pathfm_cli import errors
from pathfm_cli.data import cohort, index
from pathfm_cli.wsi import hierarchy, virtual, virtual_files, zarr_codec

PROTOTYPE = buffer.default_buffer_prototype()


@pytest.fixture(scope="module")
def real(slides_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "s.parquet"
    index.index([str(slides_folder)], out, mpp_overrides=["1.0"])
    return out


@pytest.fixture
def small(make_pyramid: MakePyramid, tmp_path: Path) -> Path:
    """Levels of 300 x 200 and 150 x 100 px in tiles of 64 px, and a file that is no slide."""
    path = make_pyramid("a.tif", size=(300, 200), factors=(1, 2))
    (tmp_path / "bad.svs").write_bytes(b"bad")
    index.index([str(path), str(tmp_path / "bad.svs")], tmp_path / "s.parquet")
    return tmp_path / "s.parquet"


def get(store: zarr_store.Store, key: str, part: zarr_store.ByteRequest | None = None):
    found = sync.sync(store.get(key, PROTOTYPE, part))
    return None if found is None else found.to_bytes()


def listed(keys) -> list[str]:
    async def collect() -> list[str]:
        return [key async for key in keys]

    return asyncio.run(collect())


def test_every_level_of_every_real_slide_equals_the_reader(real: Path) -> None:
    found = cohort.open_cohort(real)
    group = virtual.open(real)
    assert sorted(group.group_keys()) == sorted(slide.slide for slide in found.slides)
    rng = np.random.default_rng(0)
    compared = 0
    for slide in found.slides:
        for number, level in enumerate(slide.levels):
            array = group[f"{slide.slide}/{number}"]
            assert array.shape == (3, level.height_px, level.width_px)
            w, h = min(260, level.width_px), min(230, level.height_px)
            left = int(rng.integers(level.width_px - w + 1))
            top = int(rng.integers(level.height_px - h + 1))
            for x, y in ((left, top), (level.width_px - w, level.height_px - h)):
                ours = array[:, y : y + h, x : x + w]
                region = found.reader.read_region(slide, x, y, number, w, h)
                np.testing.assert_array_equal(ours.transpose(1, 2, 0), region)
                compared += 1
    assert compared >= 60


def test_a_missing_tile_is_white(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    path = make_pyramid(size=(192, 64), factors=(1,))
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts"]
        size = tag.valuebytecount // 3
        place = tag.valueoffset + size
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\0" * size)
    index.index([str(path)], tmp_path / "s.parquet")
    store = virtual.Store(tmp_path / "s.parquet")
    pixels = zarr.open_group(store, mode="r")["ramp/0"][:].transpose(1, 2, 0)
    expected = ramp((192, 64), 1)
    expected[:, 64:128] = 255
    np.testing.assert_array_equal(pixels, expected)
    assert get(store, "ramp/0/c/0/0/1") is None
    assert not sync.sync(store.exists("ramp/0/c/0/0/1"))
    assert listed(store.list_dir("ramp/0/c/0/0")) == ["0", "2"]


def test_the_metadata_of_a_slide(small: Path) -> None:
    group = virtual.open(small)
    attributes = group["a"].attrs.asdict()
    assert attributes["mpp"] == 0.25
    assert attributes["slide"] == "a"
    assert attributes["ome"]["version"] == "0.5"
    assert attributes["ome"]["multiscales"] == [
        {
            "name": "a",
            "axes": [
                {"name": "c", "type": "channel"},
                {"name": "y", "type": "space", "unit": "micrometer"},
                {"name": "x", "type": "space", "unit": "micrometer"},
            ],
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [1, 0.25, 0.25]},
                        {"type": "translation", "translation": [0, 0, 0]},
                    ],
                },
                {
                    "path": "1",
                    # The first pixel covers two level-0 pixels: its centre lies half of one deeper.
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [1, 0.5, 0.5]},
                        {"type": "translation", "translation": [0, 0.125, 0.125]},
                    ],
                },
            ],
        }
    ]
    channels = attributes["ome"]["omero"]["channels"]
    assert [channel["color"] for channel in channels] == ["FF0000", "00FF00", "0000FF"]
    level = group["a/1"]
    assert level.attrs["mpp"] == 0.5
    assert (level.shape, level.chunks, level.dtype) == ((3, 100, 150), (3, 64, 64), np.uint8)
    assert level.metadata.dimension_names == ("c", "y", "x")
    assert level.fill_value == 255


def test_the_keys(small: Path) -> None:
    store = virtual.Store(small)
    assert listed(store.list_dir("")) == ["zarr.json", "a"]
    assert listed(store.list_dir("a/")) == ["zarr.json", "0", "1"]
    assert listed(store.list_dir("a/1")) == ["zarr.json", "c"]
    assert listed(store.list_dir("a/1/c/0")) == ["0", "1"]
    tiles = [f"a/1/c/0/{row}/{column}" for row in (0, 1) for column in (0, 1, 2)]
    assert listed(store.list_prefix("a/1/")) == ["a/1/zarr.json", *tiles]
    assert listed(store.list_prefix("a/1/c/0/1")) == tiles[3:]
    every = listed(store.list())
    assert len(every) == len(set(every)) == 2 + 1 + 20 + 1 + 6
    assert all(sync.sync(store.exists(key)) for key in every)


@pytest.mark.parametrize(
    "key",
    ["", "b", "a", "b/zarr.json", "a/2/zarr.json", "a/00/zarr.json", "a/0/c/zarr.json", "a/0/c"]
    + ["a/0/c/0/4/0", "a/0/c/0/0/5", "a/0/c/1/0/0", "a/0/c/0/0/-1", "a/0/c/0/0/01", "a/0/c/0/0/²"]
    + [f"a/0/c/0/0/{'9' * 5000}", "a/0/c/0/0/0/0", "a/0/d/0/0/0", "zarr.json/zarr.json"],
)
def test_other_keys_do_not_exist(small: Path, key: str) -> None:
    store = virtual.Store(small)
    assert get(store, key) is None
    assert not sync.sync(store.exists(key))


def test_chunks_are_the_bytes_of_the_file(small: Path) -> None:
    store = virtual.Store(small)
    with tifffile.TiffFile(small.with_name("a.tif")) as file:
        handle = file.filehandle
        handle.seek(file.pages[0].dataoffsets[7])  # row 1, column 2 of 5 columns
        tile = handle.read(file.pages[0].databytecounts[7])
    key = "a/0/c/0/1/2"
    assert get(store, key) == tile
    assert get(store, key, zarr_store.RangeByteRequest(3, 9)) == tile[3:9]
    assert get(store, key, zarr_store.OffsetByteRequest(20)) == tile[20:]
    assert get(store, key, zarr_store.SuffixByteRequest(5)) == tile[-5:]
    both = [(key, None), ("a/0/c/0/9/9", None), (key, zarr_store.RangeByteRequest(0, 2))]
    found = sync.sync(store.get_partial_values(PROTOTYPE, both))
    assert [value and value.to_bytes() for value in found] == [tile, None, tile[:2]]


def test_it_is_read_only(small: Path) -> None:
    group = virtual.open(small)
    with pytest.raises(ValueError, match="read-only"):
        group["a/0"][0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        group.create_group("b")
    store = virtual.Store(small)
    with pytest.raises(ValueError, match="read-only"):
        sync.sync(store.set("b", PROTOTYPE.buffer.from_bytes(b"")))
    with pytest.raises(ValueError, match="read-only"):
        sync.sync(store.delete("a/zarr.json"))


def test_a_store_travels_to_other_processes(small: Path) -> None:
    store = virtual.Store(small)
    again = pickle.loads(pickle.dumps(store))
    assert again == store and hash(again) == hash(store)
    assert again.read_only
    assert get(again, "a/0/zarr.json") == get(store, "a/0/zarr.json")
    assert store != virtual.Store(small.with_name("t.parquet"))


def test_bad_slides_and_tiles_are_errors(small: Path, tmp_path: Path) -> None:
    group = virtual.open(small)
    path = small.with_name("a.tif")
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[0]
    before = path.read_bytes()
    state = path.stat()
    path.write_bytes(before[:place] + b"\xff" * 30 + before[place + 30 :])
    with pytest.raises(errors.SlideError, match="has changed since it was indexed"):
        group["a/0"][:, :10, :10]
    index.index([str(path)], tmp_path / "t.parquet")
    with pytest.raises(ValueError):
        virtual.open(tmp_path / "t.parquet")["a/0"][:, :10, :10]
    assert state.st_size == path.stat().st_size
    with pytest.raises(errors.InputError, match="does not exist"):
        virtual.open(tmp_path / "none.parquet")


def test_names_that_zarr_forbids(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    path = make_pyramid(size=(64, 64), factors=(1,))
    table = tmp_path / "list.csv"
    table.write_text(f"path,slide\n{path},p1/s 1\n")
    index.index([str(table)], tmp_path / "s.parquet")
    group = virtual.open(tmp_path / "s.parquet")
    assert list(group.group_keys()) == ["p1%2Fs 1"]
    assert group["p1%2Fs 1"].attrs["slide"] == "p1/s 1"
    assert group["p1%2Fs 1/0"][:].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "node"),
    [("a", "a"), ("a/b", "a%2Fb"), ("a%2Fb", "a%252Fb"), ("a\\b", "a%5Cb"), ("..", "%2E.")]
    + [("__a", "%5F_a"), ("zarr.json", "%7Aarr.json"), ("é.1", "é.1")],
)
def test_names_of_groups(name: str, node: str) -> None:
    assert hierarchy.node_name(name) == node


def test_the_codec_reads_back_its_configuration() -> None:
    codec = zarr_codec.TileCodec("jpeg-rgb", b"\xff\xd8\x00")
    assert codec.to_dict() == {
        "name": "pathfm.tile",
        "configuration": {"codec": "jpeg-rgb", "prefix": "/9gA"},
    }
    assert zarr_codec.TileCodec.from_dict(codec.to_dict()) == codec
    plain = zarr_codec.TileCodec("lzw")
    assert zarr_codec.TileCodec.from_dict(plain.to_dict()) == plain
    for bad in ({"name": "other"}, {"name": "pathfm.tile", "configuration": {"x": 1}}):
        with pytest.raises(ValueError, match="no configuration"):
            zarr_codec.TileCodec.from_dict(bad)


def test_the_entry_points_name_what_is_there() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    found = {}
    for group in ("zarr.codecs", "fsspec.specs"):
        for name, target in project["entry-points"][group].items():
            module, _, attribute = target.partition(":")
            found[name] = getattr(importlib.import_module(module), attribute)
    assert found == {"pathfm.tile": zarr_codec.TileCodec, "pathfm": virtual_files.Files}


# Through fsspec and other people's readers.


def test_as_files(small: Path) -> None:
    files = virtual_files.Files(skip_instance_cache=True)
    top = f"pathfm://{small}"
    assert json.loads(files.cat_file(f"{top}/a/zarr.json"))["node_type"] == "group"
    tile = get(virtual.Store(small), "a/0/c/0/1/2")
    assert files.cat_file(f"{top}/a/0/c/0/1/2", start=2, end=-3) == tile[2:-3]
    assert files.info(f"{top}/a/0/c/0/1/2")["size"] == len(tile)
    assert files.isdir(f"{top}/a/0") and files.isfile(f"{top}/a/0/zarr.json")
    names = files.ls(f"{top}/a", detail=False)
    assert names == [f"{small}/a/zarr.json", f"{small}/a/0", f"{small}/a/1"]
    for missing in (f"{top}/b", f"{top}/a/0/c/0/9/9", f"{small.with_suffix('')}", "/none.parquet"):
        assert not files.exists(missing)
        with pytest.raises(FileNotFoundError):
            files.cat_file(missing)


def test_an_index_that_is_made_again_is_read_again(
    small: Path, make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    files = virtual_files.Files(skip_instance_cache=True)
    assert len(files.ls(str(small))) == 2
    more = [str(small.with_name("a.tif")), str(make_pyramid("b.tif"))]
    index.index(more, small, overwrite=True)
    assert len(files.ls(str(small))) == 3


def test_dask_reads_it(real: Path) -> None:
    array = pytest.importorskip("dask.array")
    slide = cohort.open_cohort(real).slides[0].slide
    expected = virtual.open(real)[f"{slide}/2"][:, 700:1500, 600:1400]
    for found in (
        array.from_zarr(virtual.open(real)[f"{slide}/2"]),
        array.from_zarr(f"pathfm://{real}/{slide}/2"),
    ):
        np.testing.assert_array_equal(found[:, 700:1500, 600:1400].compute(), expected)


def test_xarray_reads_it(small: Path) -> None:
    xarray = pytest.importorskip("xarray")
    options = {"engine": "zarr", "consolidated": False, "drop_variables": ["1"]}
    for source in (f"pathfm://{small}/a", virtual.Store(small)):
        group = {} if isinstance(source, str) else {"group": "a"}
        found = xarray.open_dataset(source, **options, **group)["0"]
        assert found.dims == ("c", "y", "x")
        np.testing.assert_array_equal(found.values, ramp((300, 200), 1).transpose(2, 0, 1))


def test_the_reader_of_ome_zarr_opens_a_slide(real: Path) -> None:
    io = pytest.importorskip("ome_zarr.io")
    reader = pytest.importorskip("ome_zarr.reader")
    found = cohort.open_cohort(real)
    slide = found.slides[0]
    store = zarr.storage.FsspecStore.from_url(f"pathfm://{real}/{slide.slide}", read_only=True)
    (node,) = reader.Reader(io.ZarrLocation(store))()
    shapes = [(3, level.height_px, level.width_px) for level in slide.levels]
    assert [data.shape for data in node.data] == shapes
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "y", "x"]
    mpp = [steps[0]["scale"][2] for steps in node.metadata["coordinateTransformations"]]
    assert mpp == pytest.approx([slide.mpp * 2**number for number in range(len(slide.levels))])
    assert node.metadata["channel_names"] == ["red", "green", "blue"]
    level = len(slide.levels) - 1
    whole = found.reader.read_region(slide, 0, 0, level, *reversed(shapes[level][1:]))
    np.testing.assert_array_equal(node.data[level].compute().transpose(1, 2, 0), whole)


def test_many_chunks_are_read_at_once(
    make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.index([str(make_pyramid(factors=(1,)))], tmp_path / "s.parquet")
    group = virtual.open(tmp_path / "s.parquet")

    now, most, lock = 0, 0, threading.Lock()
    read = hierarchy.Tile.read

    def slow(tile):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return read(tile)

    monkeypatch.setattr(hierarchy.Tile, "read", slow)
    with zarr.config.set({"async.concurrency": 40}):
        pixels = group["ramp/0"][:]
    assert most > 20
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), ramp((1024, 768), 1))
