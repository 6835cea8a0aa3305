import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pathfm_cli import errors
from pathfm_cli.wsi import tiles


def table_of(path: Path, *levels: tuple[list[int], list[int], bytes]):
    writer = tiles.Writer()
    places = [writer.add(np.array(o), np.array(c), prefix) for o, c, prefix in levels]
    with path.open("wb") as file:
        writer.write(file, "0123456789ab")
    return tiles.TileTable.open(path), places


def following(counts: list[int], start: int) -> list[int]:
    return [start, *itertools.accumulate(counts[:-1], initial=start)][1:]


def test_literal_ranges(tmp_path: Path) -> None:
    table, (a, b) = table_of(
        tmp_path / "t.safetensors",
        ([100, 110, 130], [10, 20, 5], b"one"),
        ([900, 400], [7, 8], b"two"),
    )
    assert (a.contiguous, b.contiguous) == (True, False)
    offsets, counts = table.ranges(a, np.array([2, 0, 1]))
    assert (offsets.tolist(), counts.tolist()) == ([130, 100, 110], [5, 10, 20])
    offsets, counts = table.ranges(b, np.array([1]))
    assert (offsets.tolist(), counts.tolist()) == ([400], [8])
    assert (table.prefix(a.prefix), table.prefix(b.prefix)) == (b"one", b"two")
    assert table.id == "0123456789ab"


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("kind", ["packed", "gap between blocks", "gap inside", "missing"])
def test_every_tile_has_its_range(tmp_path: Path, size: int, kind: str) -> None:
    rng = np.random.default_rng(size)
    counts = rng.integers(1, 10_000, size).tolist()
    if kind == "missing":
        counts = [count * (rng.random() < 0.7) for count in counts]
    offsets = following(counts, 1 << 40)
    if kind == "gap between blocks":
        offsets = [offset + 1000 * (number // 64) for number, offset in enumerate(offsets)]
    if kind == "gap inside":
        offsets = [offset + number for number, offset in enumerate(offsets)]
    if kind == "missing":
        offsets = [offset * (count > 0) for offset, count in zip(offsets, counts, strict=True)]
    table, (_, place) = table_of(
        tmp_path / "t.safetensors", ([5], [6], b"x"), (offsets, counts, b"x")
    )
    found = table.ranges(place, np.arange(size))
    present = np.array(counts) > 0
    np.testing.assert_array_equal(found[1], counts)
    np.testing.assert_array_equal(found[0][present], np.array(offsets)[present])
    assert place.contiguous == (kind != "gap inside" or size == 1)


def test_a_shared_tile_is_no_contiguous_level(tmp_path: Path) -> None:
    table, (place,) = table_of(tmp_path / "t.safetensors", ([8, 8, 8, 50], [9, 9, 9, 9], b""))
    assert not place.contiguous
    assert table.ranges(place, np.arange(4))[0].tolist() == [8, 8, 8, 50]


def test_size_per_tile_and_prefixes_kept_once(tmp_path: Path) -> None:
    counts = [100] * 64_000
    level = (following(counts, 8), counts, b"tables" * 100)
    path = tmp_path / "t.safetensors"
    table_of(path, level, level)
    assert path.stat().st_size / 128_000 < 4.14


def test_safetensors_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    table_of(path, ([100, 110], [10, 20], b"ab"), ([7, 3], [1, 1], b"c"))
    found = safetensors.numpy.load_file(path)
    assert {name: array.dtype.name for name, array in found.items()} == {
        "offsets": "uint64",
        "prefix_ends": "uint64",
        "counts": "uint32",
        "prefixes": "uint8",
    }
    assert found["offsets"].tolist() == [100, 7, 3]
    assert found["counts"].tolist() == [10, 20, 1, 1]
    assert (found["prefix_ends"].tolist(), found["prefixes"].tobytes()) == ([2, 3], b"abc")


def test_copying_a_level_keeps_its_ranges(tmp_path: Path) -> None:
    counts = list(range(1, 201))
    old, (a, b) = table_of(
        tmp_path / "old.safetensors",
        ([9] * 70, [1] * 70, b"p"),
        (following(counts, 77), counts, b"q"),
    )
    writer = tiles.Writer()
    moved = writer.copy(old, b)
    with (tmp_path / "new.safetensors").open("wb") as file:
        writer.write(file, "x")
    new = tiles.TileTable.open(tmp_path / "new.safetensors")
    ours, theirs = new.ranges(moved, np.arange(200)), old.ranges(b, np.arange(200))
    np.testing.assert_array_equal(ours, theirs)
    assert new.prefix(moved.prefix) == b"q"
    assert (moved.first_tile, moved.first_offset, moved.prefix) == (0, 0, 0)


def test_no_levels_at_all(tmp_path: Path) -> None:
    table, _ = table_of(tmp_path / "t.safetensors")
    assert table.id == "0123456789ab"


def test_places_beyond_the_table(tmp_path: Path) -> None:
    table, (place,) = table_of(tmp_path / "t.safetensors", ([1, 2], [1, 1], b""))
    assert table.holds(place)
    for wrong in (
        tiles.Place(prefix=1, first_tile=0, first_offset=0, tiles=2, contiguous=True),
        tiles.Place(prefix=0, first_tile=1, first_offset=0, tiles=2, contiguous=True),
        tiles.Place(prefix=0, first_tile=0, first_offset=0, tiles=2, contiguous=False),
        tiles.Place(prefix=0, first_tile=-1, first_offset=0, tiles=2, contiguous=True),
        tiles.Place(prefix=0, first_tile=0, first_offset=1, tiles=1, contiguous=True),
    ):
        assert not table.holds(wrong)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    table_of(path, ([100, 110], [10, 20], b"ab"))
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "short": whole[:-1],
        "header only": whole[:40],
        "huge header": b"\xff" * 8 + whole[8:],
        "no json": whole[:8] + b"x" * (len(whole) - 8),
        "other file": b"PAR1" * 10,
        "another schema": whole.replace(b"pathfm.tiles/1", b"pathfm.tiles/9"),
        "prefixes": whole[:-2].replace(b"x", b"y"),
    }
    for name, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(errors.InputError, match="is no tile table, or it is damaged") as caught:
            tiles.TileTable.open(path)
        assert caught.value.hint, name
    with pytest.raises(errors.InputError):
        tiles.TileTable.open(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(("size", "good"), [(1 << 20, True), ((1 << 20) + 8, False)])
def test_a_header_is_at_most_a_megabyte(tmp_path: Path, size: int, good: bool) -> None:
    """Spaces after the JSON are allowed: it is the same table."""
    path = tmp_path / "t.safetensors"
    table_of(path, ([100], [10], b""))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(size.to_bytes(8, "little") + data[8:end].ljust(size) + data[end:])
    if good:
        assert tiles.TileTable.open(path).id == "0123456789ab"
    else:
        with pytest.raises(errors.InputError, match="no tile table"):
            tiles.TileTable.open(path)


def test_a_tile_of_4_gib() -> None:
    with pytest.raises(ValueError, match="4 GiB"):
        tiles.Writer().add(np.array([0]), np.array([1 << 32]), b"")


def test_a_run_follows_each_checkpoint(tmp_path: Path) -> None:
    """Blocks of 64 tiles of 10 bytes that lie 1,000, 50,000 and 90,000 bytes into the file."""
    numbers = np.arange(130)
    starts = np.array([1_000, 50_000, 90_000])
    offsets = starts[numbers // 64] + numbers % 64 * 10
    writer = tiles.Writer()
    place = writer.add(offsets, np.full(130, 10), b"")
    assert place.contiguous
    with (tmp_path / "t.safetensors").open("wb") as file:
        writer.write(file, "0" * 12)
    table = tiles.TileTable.open(tmp_path / "t.safetensors")
    assert table.run(place, 62, 4) == [(1_620, 10), (1_630, 10), (50_000, 10), (50_010, 10)]
    assert table.run(place, 126, 4) == [(50_620, 10), (50_630, 10), (90_000, 10), (90_010, 10)]
