"""Pixels on a local disk: what comes back, what does not, and a full disk."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from pathfm_cli import errors
from pathfm_cli.data import held

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_what_was_put_comes_back_in_any_order(tmp_path: Path) -> None:
    held.Held(tmp_path / "new" / "a.patches", 8).put([5, 0, 2], PIXELS)
    pixels, missing = held.Held(tmp_path / "new" / "a.patches", 8).get([2, 1, 5, 9])
    assert missing == [1, 3]
    np.testing.assert_array_equal(pixels[[0, 2]], PIXELS[[2, 0]])


@pytest.mark.parametrize("place", [0, 8 * 8 * 3 - 1, 8 * 8 * 3])
def test_a_damaged_record_is_missing(tmp_path: Path, place: int) -> None:
    store = held.Held(tmp_path / "a.patches", 8)
    store.put([0, 1], PIXELS[:2])
    content = bytearray(store.path.read_bytes())
    content[place] ^= 1
    store.path.write_bytes(content)
    assert held.Held(store.path, 8).get([0, 1])[1] == [0]


def test_half_a_record_and_none_are_missing(tmp_path: Path) -> None:
    store = held.Held(tmp_path / "a.patches", 8)
    store.put([0, 1], PIXELS[:2])
    os.truncate(store.path, 300)
    assert store.get([0, 1, 2])[1] == [1, 2]


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch, caplog) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = held.Held(tmp_path / "a.patches", 8)
    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        store.put([0, 1], PIXELS[:2])
        store.put([2], PIXELS[2:])
    assert [record.message for record in caplog.records] == [
        f"{store.path} takes no more patches: No space left on device"
    ]
    assert store.get([0])[1] == [0]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.Unwritable):
        held.Held(tmp_path / "file" / "a.patches", 8).get([0])
