import dataclasses

import numpy as np
import pytest
import shapely
from tissues import MakeTissue

from pathfm_cli.data import draw, grid

HALF = draw.SampleConfig(mpp=(0.5,), size_px=10, min_tissue=0.5)


def places(frame) -> list[tuple[float, float, float]]:
    return frame.select("x_px0", "y_px0", "tissue_fraction").rows()


def test_cells_are_spelled_out(make_tissue: MakeTissue) -> None:
    """Tissue from 5 to 25: the cells 0, 10, 20 hold 1/2, 1, 1/2 along each axis."""
    shape = shapely.multipolygons([shapely.box(5, 5, 25, 25)])
    table = make_tissue(("a", shape, 0.5, 100))
    found = grid.cells(table.frame, HALF)
    assert found.schema == grid.SCHEMA
    assert places(found) == [
        (10.0, 0.0, 0.5),
        (0.0, 10.0, 0.5),
        (10.0, 10.0, 1.0),
        (20.0, 10.0, 0.5),
        (10.0, 20.0, 0.5),
    ]
    assert found["mpp"].to_list() == [0.5] * 5 and found["size_px"].to_list() == [10] * 5


def test_a_cell_over_the_edge_of_the_slide_is_left_out(make_tissue: MakeTissue) -> None:
    shape = shapely.multipolygons([shapely.box(0, 0, 25, 25)])
    whole = grid.cells(make_tissue(("a", shape, 0.5, 30)).frame, HALF)
    assert {x for x, _, _ in places(whole)} == {0.0, 10.0, 20.0}
    cut = grid.cells(make_tissue(("a", shape, 0.5, 29)).frame, HALF)
    assert {x for x, _, _ in places(cut)} == {0.0, 10.0}


def test_a_cell_that_ends_at_the_edge_survives_rounding(make_tissue: MakeTissue) -> None:
    """Ten cells of 10 px at 0.3 um/px on a slide of 0.1 um/px are 30.000000000000004 px0 each."""
    shape = shapely.multipolygons([shapely.box(0, 0, 300, 300)])
    settings = draw.SampleConfig(mpp=(0.1 * 3,), size_px=10)
    assert len(grid.cells(make_tissue(("a", shape, 0.1, 300)).frame, settings)) == 100


def test_a_grid_to_the_edge_covers_all_tissue(make_tissue: MakeTissue) -> None:
    """29 px with cells of 10: the last begins at 19; tissue that ends at 20 does not need it."""
    table = make_tissue(("a", shapely.multipolygons([shapely.box(0, 0, 20.5, 20)]), 0.5, 29))
    found = grid.cells(table.frame, dataclasses.replace(HALF, min_tissue=1e-9), to_edge=True)
    assert {(x, y) for x, y, _ in places(found)} == {
        *((0.0, 0.0), (10.0, 0.0), (19.0, 0.0)),
        *((0.0, 10.0), (10.0, 10.0), (19.0, 10.0)),
    }


def test_middles_tile_the_slide() -> None:
    """Cells of 10 at 8 on 40 px: the last begins at 30, 6 behind the one before it."""
    starts = [0, 8, 16, 24, 30]
    parts = [grid.middle(start, 30, 10, 8) for start in starts]
    assert parts == [(0, 9), (1, 9), (1, 9), (1, 9), (3, 10)]
    covered = [x + s for s, (a, b) in zip(starts, parts, strict=True) for x in range(a, b)]
    assert covered == list(range(40))
    assert [grid.middle(s, 8, 10, 8) for s in (0, 8)] == [(0, 9), (1, 10)]
    assert grid.middle(0, 0, 10, 8) == (0, 10)


def test_stride_and_several_mpp(make_tissue: MakeTissue) -> None:
    shape = shapely.multipolygons([shapely.box(0, 0, 40, 40)])
    table = make_tissue(("a", shape, 0.5, 40), ("b", shape, 1.0, 40))
    settings = dataclasses.replace(HALF, mpp=(0.5, 1.0))
    found = grid.cells(table.frame, settings, stride_px=5)
    counts = found.group_by("slide", "mpp", maintain_order=True).len().rows()
    assert counts == [("a", 0.5, 49), ("a", 1.0, 9), ("b", 1.0, 49)]
    coarse = found.filter(slide="a", mpp=1.0)
    assert sorted(set(coarse["x_px0"])) == [0.0, 10.0, 20.0]


@pytest.mark.parametrize("seed", range(4))
def test_cells_equal_looking_at_every_cell(make_tissue: MakeTissue, seed: int) -> None:
    random = np.random.default_rng(seed)
    discs = shapely.buffer(shapely.points(random.random((30, 2)) * 1000), 70)
    shape = shapely.multipolygons(
        shapely.get_parts(
            shapely.intersection(shapely.union_all(discs), shapely.box(0, 0, 999, 999))
        )
    )
    mpp0, mpp, size, stride = 0.37, 0.5, 48, 31
    table = make_tissue(("a", shape, mpp0, 1000))
    settings = draw.SampleConfig(mpp=(mpp,), size_px=size, min_tissue=0.3)
    extent, step = size * mpp / mpp0, stride * mpp / mpp0
    expected = {}
    for j in range(100):
        for i in range(100):
            x, y = i * step, j * step
            if x + extent <= 1000 and y + extent <= 1000:
                box = shapely.box(x, y, x + extent, y + extent)
                share = shapely.intersection(shape, box).area / box.area
                if share >= 0.3:
                    expected[(x, y)] = share
    found = {(x, y): share for x, y, share in places(grid.cells(table.frame, settings, stride))}
    assert found == pytest.approx(expected)


def test_many_cells_are_looked_at_in_chunks(
    make_tissue: MakeTissue, ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_tissue(("a", ring, 0.5, 1000))
    whole = grid.cells(table.frame, HALF)
    monkeypatch.setattr(grid, "MAX_CELLS", 100)
    assert grid.cells(table.frame, HALF).equals(whole)
    assert len(whole) == (80 * 80 - 20 * 20)


def test_no_tissue_and_no_slides_give_no_cells(make_tissue: MakeTissue) -> None:
    table = make_tissue(("a", shapely.MultiPolygon(), 0.5, 1000))
    assert grid.cells(table.frame, HALF).is_empty()
    assert grid.cells(table.frame.head(0), HALF).schema == grid.SCHEMA
