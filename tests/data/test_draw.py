import pickle
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import polars as pl
import pytest
import shapely
from scipy import stats
from tissues import MakeTissue, rasterised

from pathfm_cli import artifacts, config, errors
from pathfm_cli.data import draw

ALONE = draw.SampleConfig(mpp=(0.5,), size_px=64)


def draws(table: artifacts.Table, settings: draw.SampleConfig, n: int, seed: int = 0) -> list:
    sampler = draw.Sampler(table, settings, seed)
    return [sampler.draw(index) for index in range(n)]


def test_rng_is_philox_with_the_index_in_its_counter() -> None:
    """The counter's lowest word runs, so draws of neighbouring indices never meet."""
    bits = np.random.Philox(key=[7, 3], counter=[0, 5, 2, 0])
    assert draw.rng(7, 5, 3, 2).random(4).tolist() == np.random.Generator(bits).random(4).tolist()
    assert draw.rng(7, 5, 3).random() == 0.9715747237049035
    assert len({draw.rng(s, i, p, a).random() for s, i, p, a in np.ndindex(3, 3, 3, 3)}) == 81


def test_draws_have_literal_values_in_any_process(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(("a", ring, 0.5, 1000), ("b", ring, 0.25, 1000))
    code = (
        "import sys; from pathfm_cli import artifacts; from pathfm_cli.data import draw\n"
        "table = artifacts.read_table(sys.argv[1])\n"
        "sampler = draw.Sampler(table, draw.SampleConfig(mpp=(0.5, 1.0), size_px=64), 11)\n"
        "print([sampler.draw(i, a) for i, a in ((0, 0), (1, 0), (10**12, 0), (1, 1))])"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(table.path)], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == (
        "[Patch(index=0, slide=0, x_px0=556.0, y_px0=544.0, mpp=1.0, size_px=64,"
        " tissue_fraction=0.849609375),"
        " Patch(index=1, slide=0, x_px0=755.0, y_px0=605.0, mpp=1.0, size_px=64,"
        " tissue_fraction=1.0),"
        " Patch(index=1000000000000, slide=1, x_px0=66.0, y_px0=108.0, mpp=0.5, size_px=64,"
        " tissue_fraction=0.734375),"
        " Patch(index=1, slide=0, x_px0=335.0, y_px0=297.0, mpp=0.5, size_px=64,"
        " tissue_fraction=1.0)]"
    )


def test_draw_depends_on_nothing_but_seed_and_index(make_tissue: MakeTissue, ring) -> None:
    shapes = [shapely.transform(ring, lambda xy, n=n: xy - n) for n in range(100)]
    table = make_tissue(*((f"s{n}", shape, 0.5, 1000) for n, shape in enumerate(shapes)))
    forward = draws(table, ALONE, 300)
    sampler = pickle.loads(pickle.dumps(draw.Sampler(table, ALONE, 0)))
    assert [sampler.draw(index) for index in reversed(range(300))] == forward[::-1]
    assert draws(table, ALONE, 300, seed=1) != forward
    assert sampler.draw(3, attempt=1) != forward[3]
    assert sampler.draw(3, attempt=1).index == 3


def test_overlap_equals_counting_fine_cells(ring) -> None:
    star = shapely.Polygon([(10, 10), (70, 35), (35, 40), (90, 90), (20, 60), (30, 35)])
    shape = shapely.multipolygons([star, shapely.box(72, 5, 95, 20)])
    step = 0.05
    cells = rasterised(shape, 100, step)
    for x, y, side in [(0, 0, 100), (5, 5, 40), (30, 30, 25), (60, 0, 40), (80, 60, 20)]:
        box = tuple(slice(round(a / step), round((a + side) / step)) for a in (y, x))
        counted = cells[box].mean()
        assert draw.tissue_fraction(shape, x, y, side) == pytest.approx(counted, abs=2e-3)
    assert draw.tissue_fraction(shape, -50, -50, 100) == pytest.approx(
        cells[:1000, :1000].sum() * step**2 / 100**2, abs=1e-3
    )
    assert draw.tissue_fraction(ring, 400, 400, 200) == 0
    assert draw.tissue_fraction(ring, 300, 300, 200) == 0.75


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_a_general_intersection(seed: int) -> None:
    random = np.random.default_rng(seed)
    discs = shapely.buffer(shapely.points(random.random((40, 2)) * 1000), 60)
    shape = shapely.multipolygons(shapely.get_parts(shapely.union_all(discs)))
    for x, y in random.random((100, 2)) * 1000 - 100:
        whole = shapely.intersection(shape, shapely.box(x, y, x + 150, y + 150)).area / 150**2
        assert draw.tissue_fraction(shape, x, y, 150) == pytest.approx(whole, abs=1e-9)


def test_positions_are_uniform_over_all_that_have_enough_tissue(make_tissue: MakeTissue) -> None:
    """Chi-square against the list of every allowed position, counted on a raster."""
    shape = shapely.multipolygons([shapely.Polygon([(2, 2), (28, 2), (28, 12), (12, 28), (2, 28)])])
    table = make_tissue(("a", shape, 1.0, 32))
    side = 8
    settings = draw.SampleConfig(mpp=(1.0,), size_px=side, min_tissue=0.4)
    step = 0.125
    cells = rasterised(shape, 32, step).astype(float)
    scale = round(1 / step)
    fractions = {
        (x, y): cells[y * scale : (y + side) * scale, x * scale : (x + side) * scale].mean()
        for x in range(32 - side + 1)
        for y in range(32 - side + 1)
    }
    allowed = {place for place, fraction in fractions.items() if fraction >= 0.4}
    counts = Counter((int(p.x_px0), int(p.y_px0)) for p in draws(table, settings, 20_000))
    close = {place for place, fraction in fractions.items() if abs(fraction - 0.4) < 1e-3}
    assert set(counts) - close == allowed - close
    observed = [counts[place] for place in allowed]
    assert stats.chisquare(observed).pvalue > 0.01


def test_every_patch_lies_in_the_slide_and_tells_its_tissue(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(("a", ring, 0.5, 1000), ("b", ring, 0.3, 950))
    settings = draw.SampleConfig(mpp=(0.25, 0.5, 1.0), size_px=100, min_tissue=0.6)
    for patch in draws(table, settings, 500):
        mpp0, side = ((0.5, 1000), (0.3, 950))[patch.slide]
        extent = 100 * patch.mpp / mpp0
        box = shapely.box(patch.x_px0, patch.y_px0, patch.x_px0 + extent, patch.y_px0 + extent)
        assert shapely.covers(shapely.box(0, 0, side, side), box)
        assert patch.x_px0.is_integer() and patch.y_px0.is_integer()
        share = shapely.intersection(ring, box).area / box.area
        assert patch.tissue_fraction == pytest.approx(share) and share >= 0.6
        assert mpp0 <= patch.mpp * 1.25


def test_all_tissue_can_be_asked_for(make_tissue: MakeTissue, ring) -> None:
    """At 0.3 um/px the side of a patch is no whole number, and its area is rounded."""
    table = make_tissue(("a", ring, 0.3, 1000))
    settings = draw.SampleConfig(mpp=(0.5,), size_px=100, min_tissue=1.0)
    assert {patch.tissue_fraction for patch in draws(table, settings, 100)} == {1.0}


def test_a_patch_as_large_as_its_slide_survives_rounding(make_tissue: MakeTissue) -> None:
    """10 px at 0.3 um/px are 30.000000000000004 px at 0.1 um/px."""
    shape = shapely.multipolygons([shapely.box(0, 0, 30, 20)])
    table = make_tissue(("a", shape, 0.1, 30))
    (patch,) = draws(table, draw.SampleConfig(mpp=(0.1 * 3,), size_px=10), 1)
    assert (patch.x_px0, patch.y_px0, patch.tissue_fraction) == (0, 0, 0.666666667)


def test_strategies_weigh_slides(make_tissue: MakeTissue, ring) -> None:
    small = shapely.multipolygons([shapely.box(100, 100, 500, 400)])
    table = make_tissue(
        ("a", ring, 0.5, 1000), ("b", small, 0.5, 1000), ("c", ring, 0.5, 1000), w=[1.0, 0.0, 3.0]
    )
    share = small.area / ring.area
    for strategy, column, weights in [
        ("uniform", "", [1, 1, 1]),
        ("area", "", [1, share, 1]),
        ("column", "w", [1, 0, 3]),
    ]:
        settings = draw.SampleConfig(
            mpp=(0.5,), size_px=64, strategy=strategy, weights_column=column
        )
        counts = np.bincount([p.slide for p in draws(table, settings, 4000)], minlength=3)
        expected = np.array(weights) / sum(weights) * 4000
        used = expected > 0
        assert counts[~used].sum() == 0
        assert stats.chisquare(counts[used], expected[used]).pvalue > 0.01


def test_mpp_weights_hold_among_what_a_slide_can_give(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(("fine", ring, 0.25, 1000), ("coarse", ring, 0.5, 1000))
    settings = draw.SampleConfig(mpp=(0.25, 0.5, 1.0), mpp_weights=(2, 1, 1), size_px=64)
    counts = Counter((p.slide, p.mpp) for p in draws(table, settings, 8000))
    keys = [(0, 0.25), (0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0)]
    assert set(counts) == set(keys)
    expected = [2000, 1000, 1000, 2000, 2000]
    assert stats.chisquare([counts[key] for key in keys], expected).pvalue > 0.01


def test_feasibility_gives_a_reason_for_every_pair(make_tissue: MakeTissue, ring) -> None:
    speck = shapely.multipolygons([shapely.box(0, 0, 20, 20)])
    blank = shapely.MultiPolygon()
    table = make_tissue(
        ("a", ring, 0.5, 1000), ("speck", speck, 0.5, 1000), ("blank", blank, 0.5, 1000)
    )
    settings = draw.SampleConfig(mpp=(0.39, 0.4, 2.0, 4.0), size_px=128)
    assert draw.feasibility(table.frame, settings).tolist() == [
        [1, 0, 0, 2],
        [1, 3, 3, 2],
        [1, 3, 3, 2],
    ]
    nothing = draw.SampleConfig(mpp=(0.5,), size_px=8, min_tissue=0)
    assert draw.feasibility(table.frame, nothing)[:, 0].tolist() == [0, 0, 3]


def test_slides_with_errors_are_left_out_and_do_not_count(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(("a", ring, 0.5, 1000), ("bad", ring, 0.5, 1000), ("c", ring, 0.5, 1000))
    marked = table.frame.with_columns(
        error=pl.when(pl.col("slide") == "bad").then(pl.lit("broken"))
    )
    table = artifacts.Table(marked, table.header, table.path, {})
    assert {patch.slide for patch in draws(table, ALONE, 50)} == {0, 1}


def test_nothing_feasible_is_told_before_any_draw(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(*((f"s{n}", ring, 0.5, 1000) for n in range(5)))
    with pytest.raises(errors.UsageError, match="s0 at mpp 0.1: the scan is too coarse") as told:
        draw.Sampler(table, draw.SampleConfig(mpp=(0.1,)), 0)
    assert "and 2 more" in str(told.value) and "--mpp" in told.value.hint


def test_scattered_tissue_ends_in_a_sentence_not_a_loop(make_tissue: MakeTissue) -> None:
    dots = shapely.multipolygons([shapely.box(x, 5, x + 10, 15) for x in range(0, 1000, 50)])
    table = make_tissue(("dots", dots, 0.5, 1000))
    sampler = draw.Sampler(table, draw.SampleConfig(mpp=(0.5,), size_px=64, min_tissue=0.4), 0)
    with pytest.raises(errors.SlideError, match="have no place with 40% tissue"):
        sampler.draw(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mpp": ()}, "mpp is empty"),
        ({"mpp": (0.5, -1.0)}, "must be above 0"),
        ({"mpp": (float("nan"),)}, "must be above 0"),
        ({"mpp": (0.5, 0.5)}, "twice"),
        ({"mpp": (0.5,), "mpp_weights": (1.0, 2.0)}, "one weight per mpp"),
        ({"mpp": (0.5,), "mpp_weights": (0.0,)}, "one above 0"),
        ({"mpp": (0.5,), "size_px": 0}, "size_px is 0"),
        ({"mpp": (0.5,), "min_tissue": 1.5}, "no share"),
        ({"mpp": (0.5,), "max_upsample": 0.5}, "below 1"),
        ({"mpp": (0.5,), "strategy": "column"}, "need each other"),
        ({"mpp": (0.5,), "weights_column": "w"}, "need each other"),
        ({"mpp": (0.5,), "strategy": "best"}, "none of uniform, area, column"),
    ],
)
def test_settings_are_checked(fields: dict, message: str) -> None:
    with pytest.raises(errors.UsageError, match=message):
        draw.SampleConfig(**fields)


def test_settings_come_from_toml() -> None:
    tree = config.loads("mpp = [0.5, 1]\nsize_px = 224\nstrategy = 'area'", "recipe")
    assert config.build(draw.SampleConfig, tree) == draw.SampleConfig(
        mpp=(0.5, 1.0), size_px=224, strategy="area"
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, None], "no weight"), ([1.0, -1.0], "no weight"), (["x", "1"], "no weight")],
)
def test_weights_must_be_numbers(make_tissue: MakeTissue, ring, weights, message: str) -> None:
    table = make_tissue(("a", ring, 0.5, 1000), ("b", ring, 0.5, 1000), weight=weights)
    settings = draw.SampleConfig(mpp=(0.5,), strategy="column", weights_column="weight")
    with pytest.raises(errors.UsageError, match=message):
        draw.Sampler(table, settings, 0)
    near = draw.SampleConfig(mpp=(0.5,), strategy="column", weights_column="weigth")
    with pytest.raises(errors.UsageError) as told:
        draw.Sampler(table, near, 0)
    assert told.value.hint == "did you mean weight?"


def test_all_weights_zero_and_a_bad_seed(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(("a", ring, 0.5, 1000), w=[0])
    settings = draw.SampleConfig(mpp=(0.5,), strategy="column", weights_column="w")
    with pytest.raises(errors.UsageError, match="weight 0"):
        draw.Sampler(table, settings, 0)
    with pytest.raises(errors.UsageError, match="seed -1"):
        draw.Sampler(table, ALONE, -1)


def test_slides_that_take_no_part_are_never_drawn(make_tissue: MakeTissue, ring) -> None:
    stains = ["HE", "IHC", "HE", "HE"]
    table = make_tissue(*((f"s{n}", ring, 0.5, 1000) for n in range(4)), kind=stains)
    only = draw.SampleConfig(mpp=(0.5,), size_px=64, where="kind == 'HE'")
    assert {patch.slide for patch in draws(table, only, 60)} == {0, 2, 3}
    half = draw.SampleConfig(mpp=(0.5,), size_px=64, where="kind == 'HE'", subset=0.5)
    assert len({patch.slide for patch in draws(table, half, 60)}) == 2
    everything = draw.SampleConfig(mpp=(0.5,), size_px=64, where="mpp == 0.5")
    assert draws(table, everything, 20) == draws(table, ALONE, 20)


def test_a_subset_that_gives_nothing_is_refused(make_tissue: MakeTissue, ring) -> None:
    table = make_tissue(("a", ring, 0.5, 1000), ("b", ring, 8.0, 100), fine=[True, False])
    with pytest.raises(errors.UsageError, match="b at mpp 0.5: the scan is too coarse"):
        draw.Sampler(table, draw.SampleConfig(mpp=(0.5,), size_px=64, where="not fine"), 0)


@pytest.mark.parametrize("subset", [0.0, 1.5, float("nan")])
def test_a_subset_is_a_share(subset: float) -> None:
    with pytest.raises(errors.UsageError, match="is no share above 0"):
        draw.SampleConfig(mpp=(0.5,), subset=subset)


def test_many_draws_a_second(make_tissue: MakeTissue, ring) -> None:
    """Faster by far than a core can read patches (about 1,000 a second)."""
    table = make_tissue(*((f"s{n}", ring, 0.5, 1000) for n in range(300)))
    sampler = draw.Sampler(table, ALONE, 0)
    start = time.process_time()
    for index in range(2000):
        sampler.draw(index)
    assert time.process_time() - start < 1.0
