from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import shapely
from tissues import MakeTissue

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, draw, grid, sample

SMALL = draw.SampleConfig(mpp=(0.5, 1.0), size_px=64)


def test_random_patches_are_the_first_of_the_stream(
    demo_tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "DRAWS_PER_PART", 7)
    out = tmp_path / "p.parquet"
    done = sample.sample(demo_tissue, out, SMALL, sample.Random(n=20, seed=5))
    frame = artifacts.read_table(out, "patches").frame
    assert frame.schema == grid.SCHEMA
    sampler = draw.Sampler(artifacts.read_table(demo_tissue), SMALL, 5)
    for index, row in enumerate(frame.iter_rows(named=True)):
        patch = sampler.draw(index)
        assert row == {
            "slide": "CMU-1-Small-Region",
            "x_px0": patch.x_px0,
            "y_px0": patch.y_px0,
            "mpp": patch.mpp,
            "size_px": 64,
            "tissue_fraction": patch.tissue_fraction,
        }
    assert done.record["rows"] == 20 and done.notes == ()


def test_a_grid_is_that_of_every_slide(demo_tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    sample.sample(demo_tissue, out, SMALL, sample.Grid(stride_px=48))
    tissue = artifacts.read_table(demo_tissue)
    assert artifacts.read_table(out).frame.equals(grid.cells(tissue.frame, SMALL, 48))


def test_the_file_carries_its_slides_and_finds_their_tiles(
    demo_tissue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "b" / "p.parquet"
    sample.sample(demo_tissue, out, SMALL, sample.Random(n=5))
    table = artifacts.read_table(out)
    slides = table.attached["slides"]
    assert "geometry" not in slides.columns and slides["slide"].to_list() == ["CMU-1-Small-Region"]
    assert table.header.parents == (f"tissue:{artifacts.read_header(demo_tissue).id}",)
    opened = cohort.open_cohort(out)
    row = table.frame.row(0, named=True)
    pixels = opened.reader.read_patch(
        opened.slides[0], row["x_px0"], row["y_px0"], row["mpp"], row["size_px"]
    )
    assert pixels.shape == (64, 64, 3) and pixels.std() > 5


def test_only_slides_with_patches_travel(make_tissue: MakeTissue, ring, tmp_path: Path) -> None:
    speck = shapely.multipolygons([shapely.box(0, 0, 100, 100)])
    spread = shapely.multipolygons([shapely.box(x, 0, x + 4, 990) for x in range(30, 990, 64)])
    table = make_tissue(
        ("a", ring, 0.5, 1000),
        ("coarse", ring, 4.0, 1000),
        ("speck", speck, 0.5, 1000),
        ("spread", spread, 0.5, 1000),
    )
    out = tmp_path / "p.parquet"
    settings = draw.SampleConfig(mpp=(0.5, 1.0), size_px=128, min_tissue=0.5)
    done = sample.sample(table.path, out, settings, sample.Grid(stride_px=128))
    assert artifacts.read_table(out).attached["slides"]["slide"].to_list() == ["a", "speck"]
    told = " / ".join(done.notes)
    assert "1 slide (coarse) gives no patch at mpp 0.5: the scan is too coarse" in told
    assert "(coarse) gives no patch at mpp 1: the scan is too coarse" in told
    assert "1 slide (spread) gives no patch: no cell has 50% tissue" in told
    assert "(speck) gives no patch at mpp 1: the slide has less tissue than one patch needs" in told
    again = sample.sample(table.path, out, settings, sample.Grid(stride_px=128))
    assert again.notes == (f"{out} is up to date", *done.notes)
    assert again.record == done.record


def test_a_grid_without_any_cell_is_an_error(make_tissue: MakeTissue, tmp_path: Path) -> None:
    spread = shapely.multipolygons([shapely.box(x, 0, x + 4, 990) for x in range(30, 990, 64)])
    table = make_tissue(("spread", spread, 0.5, 1000))
    out = tmp_path / "p.parquet"
    settings = draw.SampleConfig(mpp=(0.5,), size_px=128)
    with pytest.raises(errors.UsageError, match="No cell of the grid has 40% tissue"):
        sample.sample(table.path, out, settings, sample.Grid(stride_px=128))
    assert [path.name for path in tmp_path.glob("p.parquet*")] == []


def test_a_grid_too_fine_for_one_file_is_refused_before_work(
    make_tissue: MakeTissue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 level-0 pixels at 0.5 um/px: 100 x 100 steps of 10 px at 0.5 and 50 x 50 at 1 um/px."""
    table = make_tissue(("square", shapely.box(0, 0, 1000, 1000), 0.5, 1000))
    settings = draw.SampleConfig(mpp=(0.5, 1.0), size_px=64)
    monkeypatch.setattr(sample, "MAX_PATCHES", 12_499)
    for work in (sample.sample, sample.plan):
        with pytest.raises(errors.UsageError, match="has 12,500 cells; at most 12,499 fit"):
            work(table.path, tmp_path / "p.parquet", settings, sample.Grid(stride_px=10))
    monkeypatch.setattr(sample, "MAX_PATCHES", 12_500)
    plan = sample.plan(table.path, tmp_path / "p", settings, sample.Grid(stride_px=10))
    assert plan["patches"] == "at most 12500"


@pytest.mark.parametrize("work", [sample.sample, sample.plan])
def test_a_cohort_without_a_usable_slide_is_a_wrong_input(
    make_tissue: MakeTissue, tmp_path: Path, work: Callable
) -> None:
    table = make_tissue(("square", shapely.box(0, 0, 1000, 1000), 0.5, 1000))
    frame = table.frame.with_columns(error=pl.lit("no mpp"))
    artifacts.write_table(tmp_path / "bad.parquet", frame, artifacts.Header(kind="tissue"))
    with pytest.raises(errors.InputError, match="None of the 1 slides of .* can be used"):
        work(
            tmp_path / "bad.parquet",
            tmp_path / "p",
            draw.SampleConfig(mpp=(0.5,)),
            sample.Random(n=1),
        )


@pytest.mark.parametrize("choice", [sample.Random(n=20), sample.Grid(stride_px=64)])
def test_a_rerun_goes_on_where_a_killed_run_stopped(
    make_tissue: MakeTissue, ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice
) -> None:
    monkeypatch.setattr(sample, "DRAWS_PER_PART", 6)
    monkeypatch.setattr(sample, "SLIDES_PER_PART", 1)
    table = make_tissue(*((name, ring, 0.5, 1000) for name in "abcd"))
    whole, out = tmp_path / "whole.parquet", tmp_path / "p.parquet"
    sample.sample(table.path, whole, SMALL, choice)

    def dying(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.sample(table.path, out, SMALL, choice, progress=dying)
    (folder,) = tmp_path.glob("p.parquet.parts-*")
    before = {part.name: part.stat().st_mtime_ns for part in folder.iterdir()}
    assert len(before) == 2 and not out.exists()
    seen: list[int] = []

    def watching(done: int, total: int) -> None:
        seen.append(done)
        if done == total:
            kept = {name: (folder / name).stat().st_mtime_ns for name in before}
            assert kept == before

    sample.sample(table.path, out, SMALL, choice, progress=watching)
    assert out.read_bytes() == whole.read_bytes() and not folder.exists()
    assert seen == [1, 2, 3, 4]


def test_other_settings_clash_and_the_plan_reads_nothing(demo_tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    plan = sample.plan(demo_tissue, out, SMALL, sample.Random(n=20))
    assert plan["patches"] == 20 and plan["slides_that_can_give_patches"] == 1
    assert not out.exists()
    sample.sample(demo_tissue, out, SMALL, sample.Random(n=20))
    with pytest.raises(errors.OutputClash, match=r"random.seed=0 \(now 1\)"):
        sample.sample(demo_tissue, out, SMALL, sample.Random(n=20, seed=1))
    with pytest.raises(errors.OutputClash, match="random.n=20"):
        sample.check(out, SMALL, sample.Random(n=21))
    sample.check(out, SMALL, sample.Random(n=21), overwrite=True)


@pytest.mark.parametrize(
    ("text", "values"), [("0.5", (0.5,)), ("0.25,0.5,1,2", (0.25, 0.5, 1.0, 2.0))]
)
def test_mpp_lists(text: str, values: tuple[float, ...]) -> None:
    assert sample.parse_mpp(text) == values


@pytest.mark.parametrize("text", ["40x", "20", "0.5,40", "", "0.5;1"])
def test_magnifications_are_refused(text: str) -> None:
    with pytest.raises(errors.UsageError) as told:
        sample.parse_mpp(text)
    assert "--mpp 0.25,0.5,1,2" in told.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "Name either a number of random patches or a grid"),
        ({"n": 5, "gridded": True}, "Name either"),
        ({"n": 0}, "n is 0"),
        ({"gridded": True, "seed": 3}, "no seed, strategy or weights"),
        ({"gridded": True, "strategy": "area"}, "no seed, strategy or weights"),
        ({"gridded": True, "stride_px": 0}, "stride is 0 px"),
        ({"n": 5, "stride_px": 5}, "Only a grid has a stride"),
        ({"n": 5, "strategy": "best"}, "none of uniform, area, column"),
        ({"n": 5, "size_px": -1}, "size_px is -1"),
    ],
)
def test_requests_are_checked(changes: dict, message: str) -> None:
    plain = {
        "mpp": "0.5",
        "size_px": 256,
        "min_tissue": 0.4,
        "strategy": "uniform",
        "weights": "",
        "n": None,
        "seed": 0,
        "gridded": False,
        "stride_px": None,
    }
    with pytest.raises(errors.UsageError, match=message):
        sample.request(**(plain | changes))


def test_a_request_by_column() -> None:
    config, choice = sample.request(
        "0.5", 224, 0.5, "uniform", "w", n=3, seed=4, gridded=False, stride_px=None
    )
    assert (config.strategy, config.weights_column) == ("column", "w")
    assert choice == sample.Random(n=3, seed=4)
