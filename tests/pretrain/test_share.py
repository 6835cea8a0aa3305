"""How a batch is shared, in literal numbers."""

import pytest

from pathfm_cli import errors
from pathfm_cli.pretrain import run, share


@pytest.mark.parametrize(
    ("batch", "processes", "device_batch", "parts", "words"),
    [
        (1024, 4, 256, 0, "batch 1024 = 4 processes x 1 part x 256"),
        (1024, 1, 256, 0, "batch 1024 = 1 process x 4 parts x 256"),
        (1024, 2, 200, 0, "batch 1024 = 2 processes x 4 parts x 128"),
        (1024, 1, 0, 0, "batch 1024 = 1 process x 1 part x 1024"),
        (30, 1, 7, 0, "batch 30 = 1 process x 5 parts x 6"),
        (31, 1, 7, 0, "batch 31 = 1 process x 31 parts x 1"),
        (1024, 4, 256, 8, "batch 1024 = 4 processes x 8 parts x 32"),
        (1024, 1, 256, 1, "batch 1024 = 1 process x 1 part x 1024"),
    ],
)
def test_a_batch_is_kept_by_accumulation(batch, processes, device_batch, parts, words):
    found = share.share(batch, processes, device_batch=device_batch, parts=parts)
    assert str(found) == words
    assert found.processes * found.parts * found.at_once == batch


@pytest.mark.parametrize(
    ("batch", "processes", "parts", "message", "hint"),
    [
        (32, 3, 0, "32 patches cannot be shared by 3 processes", "train.batch_size=33"),
        (32, 2, 3, "share of 16 patches cannot be taken in 3 parts", "--accumulate 2"),
        (8, 2, 9, "share of 4 patches cannot be taken in 9 parts", "--accumulate 4"),
    ],
)
def test_uneven_shares_are_refused(batch, processes, parts, message, hint):
    with pytest.raises(errors.UsageError, match=message) as caught:
        share.share(batch, processes, parts=parts)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("processes", "parts"), [(2, 0), (1, 2)])
def test_batch_norm_wants_the_whole_batch_at_once(micro, processes, parts):
    settings = micro("head.batch_norm=true")
    machine = run.Machine(processes=processes, accumulate=parts)
    with pytest.raises(errors.UsageError, match="needs the whole batch at once"):
        run.shared(settings, machine, processes)
    assert run.shared(settings, run.Machine(), 1).at_once == 4


def test_koleo_takes_more_processes_but_no_parts(micro):
    settings = micro("loss.koleo=0.1")
    assert run.shared(settings, run.Machine(), 2).at_once == 2
    with pytest.raises(errors.UsageError, match="compares all images of a batch"):
        run.shared(settings, run.Machine(accumulate=2), 1)


@pytest.mark.parametrize(("over", "batch", "processes"), [("ranks", 1, 1), ("rank", 2, 2)])
def test_koleo_of_one_image_is_refused_before_anything_is_read(micro2, over, batch, processes):
    settings = micro2(f"train.batch_size={batch}", f"loss.spread_over={over}")
    with pytest.raises(errors.UsageError, match="sees one at a time") as caught:
        run.shared(settings, run.Machine(), processes)
    assert f"train.batch_size={2 * processes}" in caught.value.hint
