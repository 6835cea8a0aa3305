"""What a dry run says: durations, limits, and the bytes under a patch."""

import itertools
from pathlib import Path

import pytest
from ramps import MakePyramid

from pathfm_cli.data import cohort, draw, estimate, index
from pathfm_cli.wsi import batch


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.4 seconds"),
        (100, "100.0 seconds"),
        (150, "2.5 minutes"),
        (9000, "2.5 hours"),
        (216_000, "2.5 days"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert estimate.words(seconds) == text


@pytest.mark.parametrize(
    ("read", "compute", "remote", "limit", "duration_s"),
    [(10, 5, True, "compute", 20), (5, 10, False, "decode", 20), (5, 10, True, "network", 20)],
)
def test_the_slower_part_decides(
    read: float, compute: float, remote: bool, limit: str, duration_s: int
) -> None:
    rates = estimate.Rates(read_per_s=read, compute_per_s=compute, remote=remote, seconds=1)
    told = rates.outlook(100)
    assert (told["limit"], told["duration_s"]) == (limit, duration_s)


def test_times_add_up_where_reading_and_the_network_share_the_cores() -> None:
    rates = estimate.Rates(
        read_per_s=10, compute_per_s=5, remote=False, seconds=1, one_after_the_other=True
    )
    assert rates.outlook(100)["duration_s"] == 10 + 20


def test_rate_leaves_out_the_first_piece() -> None:
    used: list[str] = []
    assert estimate.rate(itertools.repeat("abcd"), 0.0, used.append) > 0
    assert used == ["abcd", "abcd"]


def test_rate_counts_items(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 2.0)  # 2 s from one look at it to the next
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    # Begun at 0; pieces end at 2 and 4; looked at once more at 6.
    assert estimate.rate(itertools.repeat("abc"), 3.0) == 6 / 6


def test_bytes_and_requests_of_patches(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    # Uncompressed tiles of 64 x 64 px, 12,288 bytes each, one row after the other in the file.
    path = make_pyramid("raw.tif", size=(256, 256), factors=(1,), compression=None)
    out = tmp_path / "s.parquet"
    index.index([str(path)], out)
    opened = cohort.open_cohort(out)
    inside = batch.Request(opened.slides[0], 0, 0, 0.25, 64)
    across = batch.Request(opened.slides[0], 32, 32, 0.25, 64)
    outside = batch.Request(opened.slides[0], 1000, 1000, 0.25, 64)
    lengths = [[size for _, size in opened.reader.ranges(one)] for one in (inside, across, outside)]
    assert lengths == [[12288], [12288] * 4, []]
    places = [(0, 0), (32, 32)]
    patches = [draw.Patch(n, 0, x, y, 0.25, 64, 1.0) for n, (x, y) in enumerate(places)]
    # Of the four tiles two lie side by side in each of two rows: two requests.
    assert estimate.cost(opened, patches) == estimate.Cost(bytes=12288 * 2.5, requests=1.5)
