import json
from pathlib import Path

import pytest

from pathfm_cli import errors
from pathfm_cli.data import skips

LOST = skips.Failure(3, "s1", "s1: tile 4 of level 0 is corrupt (no JPEG data)")


def test_what_is_replaced_is_counted_and_listed(tmp_path: Path) -> None:
    listing = tmp_path / "skipped" / "rank-0.jsonl"
    ledger = skips.Ledger(0.05, listing)
    ledger.add(64, ())
    assert not listing.parent.exists()
    ledger.add(64, (LOST, LOST))
    skips.Ledger(0.05, listing).add(64, (LOST,))
    assert (ledger.patches, ledger.failed) == (128, 2)
    assert [json.loads(line) for line in listing.read_text().splitlines()] == 3 * [
        {"index": 3, "slide": "s1", "error": "s1: tile 4 of level 0 is corrupt (no JPEG data)"}
    ]


@pytest.mark.parametrize(
    ("patches", "failed", "ends"),
    [(100, 50, False), (100, 51, True), (2000, 100, False), (2000, 101, True), (5000, 0, False)],
)
def test_too_many_end_the_run(patches: int, failed: int, ends: bool) -> None:
    ledger = skips.Ledger(0.05)
    if not ends:
        ledger.add(patches, [LOST] * failed)
        return
    with pytest.raises(errors.TooManyFailures) as told:
        ledger.add(patches, [LOST] * failed)
    assert str(told.value) == (
        f"{failed} of {patches} patches could not be read, more than 5.0% (train.max_failed); "
        "the last: s1: tile 4 of level 0 is corrupt (no JPEG data)."
    )


def test_none_may_fail() -> None:
    ledger = skips.Ledger(0.0)
    ledger.add(5, ())
    with pytest.raises(errors.TooManyFailures, match="1 of 10 patches"):
        ledger.add(5, [LOST])
