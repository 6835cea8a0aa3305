"""Block masks against DINOv2's description written out with the standard library, and by hand."""

import math
import random
import statistics

import numpy as np
import pytest

from pathfm_cli import errors
from pathfm_cli.data import draw
from pathfm_cli.pretrain import masks

CONFIG = masks.Masking(share=0.5, ratio=(0.1, 0.5))
GRID = (16, 16)
BATCH = 50
DRAWS = 5000


def reference_blocks(source, wanted, height, width):
    """`MaskingGenerator` in words: set of (row, column)."""
    masked = set()
    while len(masked) < wanted:
        limit = min(wanted - len(masked), height * width / 2)
        for _ in range(10):
            area = source.uniform(4, limit)
            aspect = math.exp(source.uniform(math.log(0.3), math.log(1 / 0.3)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows >= height or columns >= width:
                continue
            top, left = source.randint(0, height - rows), source.randint(0, width - columns)
            block = {(top + r, left + c) for r in range(rows) for c in range(columns)}
            if 0 < len(block - masked) <= limit:
                masked |= block
                break
        else:
            break
    return masked


@pytest.fixture(scope="module")
def drawn():
    """(DRAWS, tokens): both views of 2,500 patches, 50 steps of 50."""
    indices = np.arange(DRAWS // 2)
    return masks.masks(CONFIG, 7, indices, BATCH, GRID).masked_IN


def z(sample, mean, deviation):
    return (statistics.fmean(sample) - mean) / (deviation / math.sqrt(len(sample)))


def test_exactly_half_of_the_views_of_every_step_are_masked(drawn):
    steps = drawn.reshape(2, -1, BATCH, 256).any(axis=-1).sum(axis=(0, 2))
    assert steps.tolist() == [BATCH] * 50


def test_the_masked_views_are_any(drawn):
    # Of 2,500 first views half, with the variance of draws without replacement from 100 a step.
    first = drawn[: DRAWS // 2].any(axis=-1).sum()
    deviation = math.sqrt(50 * BATCH * 0.25 * (100 - BATCH) / 99)
    assert abs(first - DRAWS / 4) < 3 * deviation


def test_ratios_are_spread_over_their_range(drawn):
    ratios = np.concatenate([masks._ratios(CONFIG, 7, step, BATCH).ravel() for step in range(50)])
    given = np.sort(ratios[ratios > 0].reshape(50, BATCH), axis=1)
    edges = np.linspace(0.1, 0.5, BATCH + 1)
    assert ((given >= edges[:-1]) & (given < edges[1:])).all()
    bin_deviation = (0.4 / BATCH) / math.sqrt(12)
    assert abs(z(given.ravel(), 0.3, bin_deviation)) < 3


def test_masked_tokens_follow_the_description(drawn):
    counts = drawn.sum(axis=1)
    counts = counts[counts > 0]
    source = random.Random(1)
    expected = [
        len(reference_blocks(source, int(256 * source.uniform(0.1, 0.5)), 16, 16))
        for _ in range(2500)
    ]
    error = math.hypot(statistics.stdev(expected), np.std(counts)) / math.sqrt(2500)
    assert abs(counts.mean() - statistics.fmean(expected)) < 3 * error
    assert counts.max() <= 128
    assert abs(counts.mean() / 256 - 0.3) < 0.02


def test_tokens_in_the_middle_are_masked_more_often_as_described(drawn):
    share = drawn[drawn.any(axis=1)].reshape(-1, 16, 16)
    source = random.Random(2)
    expected = np.zeros((2500, 16, 16))
    for one in expected:
        for place in reference_blocks(source, int(256 * source.uniform(0.1, 0.5)), 16, 16):
            one[place] = 1
    for region in (np.s_[:, 6:10, 6:10], np.s_[:, :2, :2], np.s_[:, 7:9, :2], np.s_[:, :2, 7:9]):
        ours, theirs = (m[region].mean(axis=(1, 2)) for m in (share, expected))
        error = math.hypot(ours.std(), theirs.std()) / math.sqrt(2500)
        assert abs(ours.mean() - theirs.mean()) < 3 * error


class Scripted:
    """Numbers that a test gives in the place of a generator: area, aspect, top, left."""

    def __init__(self, *numbers):
        self._numbers = list(numbers)

    def random(self, count):
        assert count == 4
        return np.array(self._numbers.pop(0))


def test_a_block_by_hand():
    # Area 4 + .5 (12 - 4) = 8 at aspect 0.3^(1 - 2 * .5) = 1: 3 x 3 tokens, too many for 8 but not
    # for 12; rows 0 to 5 start at int(.99 * 6) = 5, columns at int(.2 * 6) = 1.
    mask = masks.blocks(Scripted((0.5, 0.5, 0.99, 0.2), *[(0.0, 0.5, 0.99, 0.2)] * 10), 12, (8, 8))
    expected = np.zeros((8, 8), dtype=bool)
    expected[5:8, 1:4] = True
    assert np.array_equal(mask, expected)


def test_a_block_overlaps_and_counts_what_is_new():
    # 2 x 2 at the corner; then 2 x 2 one column on, of which two tokens are new.
    numbers = (0.0, 0.5, 0.0, 0.0), (0.0, 0.5, 0.0, 0.2)
    mask = masks.blocks(Scripted(*numbers), 6, (8, 8))
    assert mask.sum() == 6
    assert mask[:2, :3].all()


def test_ten_blocks_that_do_not_fit_end_it():
    # Aspect 0.3 and area 32 want 3 x 10 tokens of a grid with 8 columns.
    assert not masks.blocks(Scripted(*[(1.0, 0.0, 0.5, 0.5)] * 10), 32, (8, 8)).any()


def test_masks_depend_on_seed_and_index_alone():
    whole = masks.masks(CONFIG, 3, range(8, 16), 8, GRID).masked_IN.reshape(2, 8, 256)
    ranks = [masks.masks(CONFIG, 3, part, 8, GRID) for part in (range(8, 12), range(12, 16))]
    halves = [rank.masked_IN.reshape(2, 4, 256) for rank in ranks]
    assert np.array_equal(np.concatenate(halves, axis=1), whole)
    other = masks.masks(CONFIG, 4, range(8, 16), 8, GRID).masked_IN
    assert not np.array_equal(other, whole.reshape(16, 256))


def test_streams_have_keys_of_their_own():
    assert len({masks.RATIOS, masks.BLOCKS, draw.PLACE, draw.NEAR, 101, 102}) == 6


def test_places_and_weights():
    found = masks.Masks(np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=bool))
    assert found.places_M.tolist() == [1, 2, 6]
    assert found.weight_M.tolist() == [0.5, 0.5, 1.0]
    nothing = masks.Masks(np.zeros((2, 3), dtype=bool))
    assert nothing.places_M.shape == nothing.weight_M.shape == (0,)


def test_no_share_masks_nothing():
    config = masks.Masking(share=0.0, ratio=(0.1, 0.5))
    assert not masks.masks(config, 0, range(4), 4, (4, 4)).masked_IN.any()


@pytest.mark.parametrize(
    ("share", "ratio", "name"),
    [(1.5, (0.1, 0.5), "share"), (0.5, (0.5, 0.1), "ratio"), (0.5, (0.1, 1.5), "ratio")],
)
def test_settings_without_sense_are_refused(share, ratio, name):
    with pytest.raises(errors.UsageError, match=f"masks.{name}"):
        masks.Masking(share=share, ratio=ratio)
