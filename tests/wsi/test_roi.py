"""A rectangle of a tile, against Pillow's decode of the whole tile."""

import contextlib
import dataclasses
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pathfm_cli.wsi import codecs, roi

needs_extension = pytest.mark.skipif(
    not roi.AVAILABLE, reason="the extension is not built (are libjpeg-turbo's headers there?)"
)

ODD = (53, 37)
EVEN = (64, 48)
HANDLED = ("444", "422", "440", "420", "420-restarts", "rgb")
OTHERS = ("411", "grey", "progressive", "wide-factors")
WAYS = [pytest.param("extension", marks=needs_extension), "whole"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with mock.patch.object(roi, "AVAILABLE", request.param == "extension"):
        yield request.param


@dataclasses.dataclass(frozen=True)
class Tile:
    data: bytes
    width: int
    height: int
    codec: str

    @property
    def prefix(self) -> bytes:
        return codecs.jpeg_prefix(self.codec, b"")

    def decode(self, x: int, y: int, w: int, h: int, scale: int = 1) -> np.ndarray:
        canvas = np.full((h + 2, w + 2, 3), 7, np.uint8)
        out = canvas[1:-1, 1:-1]
        roi.decode_region(
            self.data, self.codec, self.prefix, self.width, self.height, x, y, w, h, out, scale
        )
        frame = (canvas == 7).all(2)
        assert frame[[0, -1]].all() and frame[:, [0, -1]].all(), "written beside the window"
        return out

    def whole(self, scale: int = 1) -> np.ndarray:
        """Pillow's decode of the tile; its own libjpeg-turbo, another binding."""
        image = Image.open(io.BytesIO(self.data))
        image.draft("RGB", (self.width // scale, self.height // scale))
        return np.asarray(image.convert("RGB"))

    def handled(self) -> bool:
        """Whether the extension itself decodes this kind of tile."""
        out = np.empty((1, 1, 3), np.uint8)
        return roi._roi.decode(self.prefix, self.data[2:], self.width, self.height, 0, 0, out, 1)


def picture(width: int, height: int) -> np.ndarray:
    """Hard colour edges of 3 px, so that each chroma sample differs from its neighbours."""
    rng = np.random.default_rng(width * 1000 + height)
    blocks = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((3, 3, 1), np.uint8))[:height, :width]


def tile(kind: str, size: tuple[int, int]) -> Tile:
    pixels = picture(*size)
    stream = io.BytesIO()
    if kind in ("440", "411"):
        stream.write(imagecodecs.jpeg8_encode(pixels, level=85, subsampling=kind))
    elif kind == "rgb":
        Image.fromarray(pixels).save(stream, "JPEG", keep_rgb=True, quality=85)
    elif kind == "grey":
        Image.fromarray(pixels).convert("L").save(stream, "JPEG", quality=85)
    elif kind == "progressive":
        Image.fromarray(pixels).save(stream, "JPEG", quality=85, progressive=True)
    elif kind == "wide-factors":
        stream.write(with_factors(tile("444", size).data, 0x22))
    else:
        options = {"restart_marker_blocks": 2} if kind.endswith("restarts") else {}
        subsampling = ":".join(kind[:3])
        Image.fromarray(pixels).save(stream, "JPEG", quality=85, subsampling=subsampling, **options)
    return Tile(stream.getvalue(), *size, "jpeg-rgb" if kind == "rgb" else "jpeg-ycbcr")


def with_factors(data: bytes, factors: int) -> bytes:
    """Change the sampling factors of all components."""
    frame = data.index(b"\xff\xc0")
    changed = bytearray(data)
    for component in range(3):
        changed[frame + 11 + 3 * component] = factors
    return bytes(changed)


@contextlib.contextmanager
def no_full_decode() -> Iterator[None]:
    """Fail where the extension hands a tile over."""
    with (
        mock.patch.object(codecs, "decode", side_effect=AssertionError),
        mock.patch.object(roi, "_scaled", side_effect=AssertionError),
    ):
        yield


def spans(size: int) -> Iterator[tuple[int, int]]:
    """Every (begin, length) within `size`."""
    return ((begin, end - begin) for end in range(1, size + 1) for begin in range(end))


@needs_extension
@pytest.mark.parametrize("scale", roi.SCALES)
@pytest.mark.parametrize("size", [ODD, EVEN])
@pytest.mark.parametrize("kind", HANDLED)
def test_every_rectangle_has_the_pixels_of_the_whole(
    kind: str, size: tuple[int, int], scale: int
) -> None:
    one = tile(kind, size)
    expected = one.whole(scale)
    height, width = expected.shape[:2]
    assert (width, height) == (-(-size[0] // scale), -(-size[1] // scale))
    across = [(x, y, w, h) for x, w in spans(width) for y, h in ((0, height), (height // 2, 1))]
    down = [(x, y, w, h) for y, h in spans(height) for x, w in ((0, width), (width // 3, 2))]
    with no_full_decode():
        for x, y, w, h in across + down:
            assert np.array_equal(one.decode(x, y, w, h, scale), expected[y : y + h, x : x + w])


@pytest.mark.parametrize("scale", roi.SCALES)
@pytest.mark.parametrize("kind", HANDLED + OTHERS[:3])
def test_random_rectangles_are_the_same_either_way(kind: str, scale: int, way: str) -> None:
    rng = np.random.default_rng(scale)
    for size in ((240, 208), (97, 131), (16, 16)):
        one = tile(kind, size)
        expected = one.whole(scale)
        for _ in range(25):
            x, y = (int(rng.integers(0, side)) for side in expected.shape[1::-1])
            w = int(rng.integers(expected.shape[1] - x)) + 1
            h = int(rng.integers(expected.shape[0] - y)) + 1
            assert np.array_equal(one.decode(x, y, w, h, scale), expected[y : y + h, x : x + w])


@needs_extension
@pytest.mark.parametrize("kind", OTHERS)
def test_the_extension_leaves_other_kinds_to_the_full_decode(kind: str) -> None:
    assert not tile(kind, EVEN).handled()


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (70, 3), (15, 17)])
def test_tiny_tiles(size: tuple[int, int], way: str) -> None:
    one = tile("420", size)
    assert np.array_equal(one.decode(0, 0, *size), one.whole())
    with pytest.raises(ValueError, match="cannot be scaled"):
        one.decode(0, 0, 1, 1, 2)


def test_colours_follow_the_codec_and_not_the_tile(way: str) -> None:
    red = np.full((16, 16, 3), (250, 3, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(red).save(stream, "JPEG", keep_rgb=True, quality=100)
    marked = stream.getvalue()
    assert marked[2:4] == b"\xff\xee"
    # As Aperio writes RGB: no marker, component ids 0, 1, 2, which libjpeg takes for YCbCr.
    bare = bytearray(marked[:2] + marked[18:])
    for marker, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        for component in range(3):
            bare[bare.index(marker) + first + step * component] = component
    jfif = marked[:2] + codecs.jpeg_prefix("jpeg-ycbcr", b"")[2:] + marked[18:]
    for data in (marked, bytes(bare), jfif):
        as_rgb = Tile(data, 16, 16, "jpeg-rgb").decode(3, 3, 2, 2)
        assert np.abs(as_rgb.astype(int) - (250, 3, 3)).max() <= 1
        as_ycbcr = Tile(data, 16, 16, "jpeg-ycbcr").decode(3, 3, 2, 2)
        # BT.601 of Y 250, Cb 3, Cr 3
        assert np.abs(as_ycbcr.astype(int) - (75, 255, 28)).max() <= 1


def test_tables_apart_from_the_tile(way: str) -> None:
    one = tile("422", EVEN)
    begin, frame = one.data.index(b"\xff\xdb"), one.data.index(b"\xff\xc0")
    tables = b"\xff\xd8" + one.data[begin:frame] + b"\xff\xd9"
    abbreviated = one.data[:2] + one.data[frame:]
    prefix = codecs.jpeg_prefix("jpeg-ycbcr", tables)
    out = np.empty((9, 20, 3), np.uint8)
    roi.decode_region(abbreviated, "jpeg-ycbcr", prefix, *EVEN, 30, 20, 20, 9, out)
    assert np.array_equal(out, one.whole()[20:29, 30:50])
    with pytest.raises(ValueError):
        roi.decode_region(abbreviated, "jpeg-ycbcr", one.prefix, *EVEN, 30, 20, 20, 9, out)


def test_other_codecs_are_decoded_whole(way: str) -> None:
    pixels = picture(*EVEN)
    out = np.empty((5, 6, 3), np.uint8)
    roi.decode_region(pixels.tobytes(), "raw", b"", *EVEN, 10, 20, 6, 5, out)
    assert np.array_equal(out, pixels[20:25, 10:16])
    with pytest.raises(ValueError, match="raw tile of 64x48 px cannot be scaled by 1/2"):
        roi.decode_region(pixels.tobytes(), "raw", b"", *EVEN, 0, 0, 6, 5, out, 2)


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        *(((x, y, 4, 4), (4, 4, 3)) for x, y in ((-1, 0), (0, -1), (61, 0), (0, 45))),
        ((0, 0, 65, 48), (48, 65, 3)),
        ((0, 0, 0, 4), (4, 0, 3)),
        *(((0, 0, 4, 4), shape) for shape in ((4, 5, 3), (5, 4, 3), (4, 4, 4), (4, 4))),
    ],
)
def test_rectangles_that_do_not_fit(
    box: tuple[int, int, int, int], shape: tuple[int, ...], way: str
) -> None:
    one = tile("444", EVEN)
    out = np.empty(shape, np.uint8)
    with pytest.raises(ValueError, match="fits neither"):
        roi.decode_region(one.data, one.codec, one.prefix, *EVEN, *box, out)


@needs_extension
def test_the_extension_checks_its_arguments_itself() -> None:
    one = tile("444", EVEN)
    good = np.empty((4, 4, 3), np.uint8)
    for x, y, out, scale in (
        (61, 0, good, 1),
        (0, 45, good, 1),
        (29, 0, good, 2),
        (2**32 - 1, 0, good, 1),
        (0, 0, good, 3),
        (0, 0, good, 0),
        (0, 0, good[:0], 1),
        (0, 0, good[:, ::2], 1),
        (0, 0, good[:, :, ::-1], 1),
        (0, 0, good[0], 1),
        (0, 0, good.astype(np.uint16), 1),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            roi._roi.decode(one.prefix, one.data[2:], *EVEN, x, y, out, scale)
    for out in (b"1234", np.frombuffer(bytes(48), np.uint8).reshape(4, 4, 3)):
        with pytest.raises((BufferError, ValueError)):
            roi._roi.decode(one.prefix, one.data[2:], *EVEN, 0, 0, out, 1)
    upside_down = good[::-1]
    assert roi._roi.decode(one.prefix, one.data[2:], *EVEN, 8, 9, upside_down, 1)
    assert np.array_equal(upside_down, one.whole()[9:13, 8:12])


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(63, 48), (64, 47), (65, 48), (64, 4096)])
def test_an_image_of_another_size(size: tuple[int, int], scale: int, way: str) -> None:
    # At scale 1/2 a tile of 63 px is as wide as one of 64 px: the declared size must be looked at.
    one = dataclasses.replace(tile("420", EVEN), width=size[0], height=size[1])
    with pytest.raises(ValueError):
        one.decode(0, 0, 4, 4, scale)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_header_that_claims_a_giant(scale: int, way: str) -> None:
    data = bytearray(tile("420", EVEN).data)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    before = resident_bytes()
    with pytest.raises(ValueError):
        Tile(bytes(data), *EVEN, "jpeg-ycbcr").decode(0, 0, 4, 4, scale)
    assert resident_bytes() - before < 64 << 20


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("kind", ["444", "420"])
def test_a_tile_cut_short_is_an_error_wherever_the_rectangle_lies(
    kind: str, scale: int, way: str
) -> None:
    one = tile(kind, EVEN)
    for keep in (0, 1, 2, 30, len(one.data) // 2, len(one.data) - 3):
        with pytest.raises(ValueError):
            dataclasses.replace(one, data=one.data[:keep]).decode(0, 0, 4, 4, scale)


def test_zeros_after_the_end_are_no_damage(way: str) -> None:
    one = tile("422", EVEN)
    padded = dataclasses.replace(one, data=one.data + b"\0\0\0")
    with no_full_decode() if way == "extension" else contextlib.nullcontext():
        assert np.array_equal(padded.decode(5, 5, 9, 9), one.whole()[5:14, 5:14])


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite, cut, remove or insert a few bytes between SOI and EOI."""
    body = bytearray(data[2:-2])
    at = int(rng.integers(0, len(body) - 60))
    some = rng.integers(0, 256, int(rng.integers(1, 8)), dtype=np.uint8).tobytes()
    match int(rng.integers(0, 5)):
        case 0:
            body[at : at + len(some)] = some
        case 1:
            at %= 600
            body[at : at + 1] = some[:1]
        case 2:
            del body[at : at + int(rng.integers(1, 60))]
        case 3:
            body[at:at] = some
        case _:
            del body[at:]
    return data[:2] + bytes(body) + data[-2:]


@needs_extension
def test_damaged_tiles_get_the_same_answer_either_way() -> None:
    rng = np.random.default_rng(0)
    seeds = [tile(kind, size) for kind in ("444", "422", "420", "rgb") for size in (ODD, EVEN)]
    counts = {"read": 0, "refused": 0}
    for _ in range(4000):
        one = seeds[rng.integers(len(seeds))]
        one = dataclasses.replace(one, data=mutated(one.data, rng))
        scale = int(rng.choice(roi.SCALES))
        size = (-(-one.width // scale), -(-one.height // scale))
        with mock.patch.object(roi, "AVAILABLE", False):
            expected = attempt(one, (0, 0, *size), scale)
        found = attempt(one, (0, 0, *size), scale)
        counts["refused" if expected is None else "read"] += 1
        assert (found is None) == (expected is None)
        if expected is not None:
            assert np.array_equal(found, expected)
            x, y = size[0] // 2, size[1] // 2
            part = one.decode(x, y, 2, 2, scale)
            assert np.array_equal(part, expected[y : y + 2, x : x + 2])
    assert min(counts.values()) > 400, counts


def attempt(one: Tile, box: tuple[int, int, int, int], scale: int) -> np.ndarray | None:
    try:
        return one.decode(*box, scale)
    except ValueError:
        return None


def resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_extension
def test_ten_thousand_damaged_tiles_leave_no_memory_behind() -> None:
    rng = np.random.default_rng(1)
    # Wide, so that even one forgotten row of pixels a tile would show.
    one = tile("420", (2048, 16))
    out = np.empty((8, 1900, 3), np.uint8)
    refused = 0
    for i in range(11_000):
        if i == 1000:
            before = resident_bytes()
        data = mutated(one.data, rng)
        try:
            roi._roi.decode(one.prefix, data[2:], 2048, 16, 60, 8, out, 1)
        except ValueError:
            refused += 1
    assert resident_bytes() - before < 4 << 20
    assert 3000 < refused < 10_500


@needs_extension
def test_other_threads_run_while_a_tile_is_decoded() -> None:
    one = tile("444", (2048, 2048))
    out = np.empty((2048, 2048, 3), np.uint8)
    box = (0, 0, 2048, 2048)
    job = threading.Thread(
        target=roi.decode_region,
        args=(one.data, one.codec, one.prefix, 2048, 2048, *box, out),
    )
    interval = sys.getswitchinterval()
    # Nobody is asked to hand over the lock, so turns are only taken where it is released.
    sys.setswitchinterval(60)
    try:
        job.start()
        turns = 0
        while job.is_alive():
            time.sleep(0)
            turns += 1
    finally:
        sys.setswitchinterval(interval)
    assert np.array_equal(out, one.whole())
    assert turns > 100
