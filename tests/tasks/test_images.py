"""Folders and tables of images, and what decoding makes of odd and hostile files."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pathfm_cli import errors
from pathfm_cli.tasks import images, source

ORGAN4 = Path(__file__).parents[2].parent / "shared" / "data" / "patches" / "organ4"


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(folder / name)
    return folder


def columns_of(data: source.Source) -> dict[str, list[str]]:
    return data.rows.to_dict(as_series=False)


def test_split_and_class_folders(tmp_path: Path) -> None:
    put(tmp_path, "train/b/2.png", "test/a/1.jpg", "train/a/10.tif", "train/a/9.PNG")
    (tmp_path / "train/b/readme.txt").write_text("x")
    (tmp_path / "train/b/.hidden.png").write_text("x")
    data = images.open_images(tmp_path)
    assert columns_of(data) == {
        "id": ["test/a/1.jpg", "train/a/10.tif", "train/a/9.PNG", "train/b/2.png"],
        "label": ["a", "a", "a", "b"],
        "split": ["test", "train", "train", "train"],
    }
    assert data.settings == {"layout": "split/label/image", "classes": ["a", "b"]}
    assert data.notes == (
        f"read {tmp_path} as split/class/image",
        "1 files are no images: train/b/readme.txt",
        "2 classes: a, b",
    )
    assert data.read(3).tolist() == [[[len("train/b/2.png"), 0, 0]] * 4] * 4


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["y/1.png", "x/1.png"], {"id": ["x/1.png", "y/1.png"], "label": ["x", "y"]}),
        (
            ["val/1.png", "Test/1.png"],
            {"id": ["Test/1.png", "val/1.png"], "split": ["Test", "val"]},
        ),
        (["b.png", "a.png"], {"id": ["a.png", "b.png"]}),
    ],
)
def test_other_layouts(tmp_path: Path, names: list[str], columns: dict[str, list[str]]) -> None:
    assert columns_of(images.open_images(put(tmp_path, *names))) == columns


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a.png", "x/1.png"], "holds both a.png and x/1.png"),
        (["train/1.png", "x/1.png"], "mixes the split train with x"),
        (["x/patient1/1.png", "y/patient1/1.png"], "x, which is no known split"),
        (["train/x/1/1.png"], "train, which is 3 folders above"),
    ],
)
def test_ambiguous_layouts_are_refused(tmp_path: Path, names: list[str], why: str) -> None:
    with pytest.raises(errors.UsageError, match=why) as caught:
        images.open_images(put(tmp_path, *names))
    assert "--images" in caught.value.hint


def test_a_real_table_with_chosen_columns() -> None:
    if not ORGAN4.exists():
        pytest.skip("shared/data/patches/organ4 is absent")
    columns = source.Columns(label="organ", group="slide")
    data = images.open_images(ORGAN4 / "labels.csv", columns)
    assert data.rows.columns == ["id", "label", "split", "group", "slide"]
    assert data.rows["split"].value_counts(sort=True).rows() == [("train", 400), ("test", 200)]
    assert data.settings["classes"] == ["colon", "duodenum", "liver", "stomach"]
    listed = pl.read_csv(ORGAN4 / "labels.csv")["file"].to_list()
    assert data.rows["id"].to_list() == listed
    expected = np.asarray(Image.open(ORGAN4 / listed[7]).convert("RGB"))
    assert np.array_equal(data.read(7), expected)


def test_tables_of_every_kind(tmp_path: Path) -> None:
    put(tmp_path, "p/b.png", "p/a.png")
    frame = pl.DataFrame({"path": ["p/b.png", "p/a.png"], "label": [1, 0]})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    frame.write_parquet(tmp_path / "t.parquet")
    opened = [images.open_images(tmp_path / f"t.{kind}") for kind in ("csv", "tsv", "parquet")]
    for data in opened:
        assert columns_of(data) == {"id": ["p/b.png", "p/a.png"], "label": ["1", "0"]}
        assert data.settings["classes"] == ["0", "1"]
        assert data.parent == opened[0].parent


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,x\n", "needs one column path, file or image, not none"),
        ("path,file\na.png,a.png\n", "not path and file"),
        ("path\na.png\na.png\n", "two rows called a.png"),
        ("path,label\n,x\na.png,y\n", "a row without path"),
    ],
)
def test_unfit_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(errors.UsageError, match=message):
        images.open_images(tmp_path / "t.csv")


def test_missing_empty_and_foreign_inputs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\n")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("t.csv", "a.txt", "empty", "nowhere", "nowhere.csv"):
        with pytest.raises(errors.InputError):
            images.open_images(tmp_path / name)
    (tmp_path / "t.csv").write_text("path,organ\na.png,x\n")
    with pytest.raises(errors.UsageError, match="no column 'organs'") as caught:
        images.open_images(tmp_path / "t.csv", source.Columns(label="organs"))
    assert caught.value.hint == "--label organ"
    with pytest.raises(errors.UsageError, match="is a folder"):
        images.open_images(put(tmp_path / "f", "a.png"), source.Columns(label="organ"))


def test_the_id_follows_the_files_and_not_their_place(tmp_path: Path) -> None:
    put(tmp_path / "one", "x/a.png")
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "x").rename(tmp_path / "two" / "x")
    moved = images.open_images(tmp_path / "two").parent
    (tmp_path / "two" / "x").rename(tmp_path / "one" / "x")
    assert images.open_images(tmp_path / "one").parent == moved
    Image.new("RGB", (5, 5)).save(tmp_path / "one/x/a.png")
    assert images.open_images(tmp_path / "one").parent != moved


def save(path: Path, mode: str, colour: object, **options: object) -> Path:
    Image.new(mode, (3, 2), colour).save(path, **options)  # type: ignore[arg-type]
    return path


def test_colour_modes_become_rgb(tmp_path: Path) -> None:
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    clear.putpixel((0, 0), (0, 100, 200, 255))
    clear.save(tmp_path / "clear.png")
    cases = {
        save(tmp_path / "grey.png", "L", 77): [77, 77, 77],
        save(tmp_path / "bit.png", "1", 1): [255, 255, 255],
        save(tmp_path / "half.png", "LA", (0, 127)): [128, 128, 128],
        save(tmp_path / "key.png", "RGB", (1, 2, 3), transparency=(1, 2, 3)): [255, 255, 255],
        save(tmp_path / "cmyk.tif", "CMYK", (0, 255, 0, 0)): [255, 0, 255],
        tmp_path / "palette.png": [10, 20, 30],
        tmp_path / "clear.png": [255, 255, 255],
    }
    for path, colour in cases.items():
        pixels = images.decode(path)
        assert pixels.shape == (2, 3, 3) and pixels.dtype == np.uint8
        assert pixels[1, 2].tolist() == colour, path.name
    assert images.decode(tmp_path / "clear.png")[0, 0].tolist() == [0, 100, 200]


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 100))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_header(100_000, 100_000), "decompression bomb"),
        (png_header(9_000, 9_000), "more than 64 million"),
        (png_header(4_000, 10), "longer than 16 times"),
        (png_header(300, 300), "cannot be decoded"),
        (b"not an image", "no image that can be read"),
        (b"", "no image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that can be read"),
    ],
)
def test_hostile_files_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(errors.SlideError, match=message) as caught:
        images.decode(tmp_path / "a.png")
    assert str(tmp_path) not in str(caught.value)


def test_cut_and_missing_files_and_deep_pixels_are_errors(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "deep.png", "I;16", 1000)
    cases = {"a.jpg": "truncated", "deep.png": "mode I;16", "none.png": "does not exist"}
    for name, message in cases.items():
        with pytest.raises(errors.SlideError, match=message):
            images.decode(tmp_path / name)


EIGHT = """
import sys
from concurrent import futures
from pathlib import Path
from pathfm_cli.tasks import images

def memory_mb():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10

file = Path(sys.argv[1])
with futures.ThreadPoolExecutor(8) as pool:
    images.decode(file)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb()
    list(pool.map(images.decode, [file] * 8))
print(memory_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux measures the peak")
def test_large_images_take_turns(tmp_path: Path) -> None:
    """Eight of 60 MB, by eight threads: each decode takes 200 MB, and its result stays.

    In turn that was 593 MB, at once 1,127 to 1,174; in a process of its own, since what
    other tests have freed is taken first.
    """
    Image.new("RGB", (5000, 4000)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", EIGHT, str(tmp_path / "a.png")]
    # Threads that share what is freed; else each keeps its own, whether they take turns or not.
    own = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=own)
    assert int(done.stdout) < 850
