import json

import numpy as np
import pytest
import shapely

from pathfm_cli import errors
from pathfm_cli.data import polygons

EXACT = polygons.Cleaning(min_object_um2=0, min_hole_um2=0, tolerance_um=0)


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_an_outline_runs_along_pixel_edges() -> None:
    (found,) = polygons.trace(mask_of("....", ".##.", ".#.."))
    expected = shapely.Polygon([(1, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3)])
    assert shapely.equals(found, expected)
    assert shapely.get_num_coordinates(shapely.simplify(found, 0)) == 7


def test_holes_and_islands_in_holes() -> None:
    found = polygons.trace(mask_of("#####", "#...#", "#.#.#", "#...#", "#####"))
    frame, island = sorted(found, key=lambda shape: -shape.area)
    assert (frame.area, len(frame.interiors), island.bounds) == (16, 1, (2, 2, 3, 3))


def test_pixels_that_touch_at_a_corner_are_apart_and_stay_valid() -> None:
    found = polygons.trace(mask_of("##.", "#.#", ".##"))
    assert sorted(shapely.area(found)) == [3, 3]
    assert shapely.is_valid(shapely.multipolygons(found))


def test_nothing_gives_nothing() -> None:
    assert len(polygons.trace(mask_of("...", "..."))) == 0
    empty = polygons.from_mask(mask_of("..."), (8, 8), 1.0, EXACT)
    assert empty.is_empty and empty.geom_type == "MultiPolygon"


@pytest.mark.parametrize("seed", range(40))
def test_area_and_place_equal_the_pixels_of_any_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 40, 2)
    mask = random.random((height, width)) < random.random()
    shape = polygons.from_mask(mask, (1, 1), 1.0, EXACT)
    assert shape.is_valid
    assert shape.area == mask.sum()
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    assert np.array_equal(shapely.contains_xy(shape, x, y), mask)


def test_scale_is_the_true_one_of_each_axis() -> None:
    shape = polygons.from_mask(mask_of("..", ".#"), (16.014, 15.98), 0.5, EXACT)
    assert shape.bounds == pytest.approx((16.014, 15.98, 32.028, 31.96))


def test_small_pieces_and_holes_go_by_their_area_in_um2() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[0:20, 0:20] = True  # 400 pixels of 16 um: 102,400 um2
    mask[2:4, 2:4] = False  # 1,024 um2
    mask[10:16, 10:16] = False  # 9,216 um2
    mask[30:34, 30:34] = True  # 4,096 um2
    cleaning = polygons.Cleaning(min_object_um2=5_000, min_hole_um2=2_000, tolerance_um=0)
    shape = polygons.from_mask(mask, (32, 32), 0.5, cleaning)
    assert polygons.area_mm2(shape, 0.5) * 1e6 == 102_400 - 9_216
    assert len(shape.geoms) == 1 and len(shape.geoms[0].interiors) == 1
    just = polygons.Cleaning(min_object_um2=4_096, min_hole_um2=1_024, tolerance_um=0)
    kept = polygons.from_mask(mask, (32, 32), 0.5, just)
    assert len(kept.geoms) == 2 and len(kept.geoms[0].interiors) + len(kept.geoms[1].interiors) == 2


def test_an_island_in_a_filled_hole_is_not_counted_twice() -> None:
    mask = np.ones((9, 9), dtype=bool)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    cleaning = polygons.Cleaning(min_object_um2=0, min_hole_um2=26, tolerance_um=0)
    assert polygons.from_mask(mask, (1, 1), 1.0, cleaning).area == 81


def test_simplifying_saves_corners_within_the_tolerance() -> None:
    y, x = np.mgrid[:200, :200]
    mask = (x - 100) ** 2 + (y - 100) ** 2 < 80**2
    exact = polygons.from_mask(mask, (16, 16), 0.5, EXACT)
    cleaning = polygons.Cleaning(min_object_um2=0, min_hole_um2=0, tolerance_um=8)
    simple = polygons.from_mask(mask, (16, 16), 0.5, cleaning)
    assert shapely.get_num_coordinates(simple) < shapely.get_num_coordinates(exact) / 5
    assert shapely.hausdorff_distance(simple.boundary, exact.boundary, densify=0.1) <= 8 / 0.5
    assert simple.area == pytest.approx(exact.area, rel=0.01)


def test_speckle_is_outlined_in_bounded_time() -> None:
    mask = np.random.default_rng(0).random((400, 400)) < 0.5
    shape = polygons.from_mask(mask, (16, 16), 0.5, polygons.Cleaning())
    assert shape.is_valid


def test_geoparquet_says_that_there_is_no_crs() -> None:
    geo = json.loads(polygons.geoparquet((1, 2, 3, 4)))
    assert geo == {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["MultiPolygon"],
                "crs": None,
                "edges": "planar",
                "bbox": [1.0, 2.0, 3.0, 4.0],
            }
        },
    }
    assert "bbox" not in polygons.geoparquet(None)


@pytest.mark.parametrize("field", ["min_object_um2", "min_hole_um2", "tolerance_um"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_sizes_that_mean_nothing_are_refused(field: str, value: float) -> None:
    with pytest.raises(errors.UsageError, match=f"{field} is {value}; it is a number from 0 on"):
        polygons.Cleaning(**{field: value})


def test_an_outline_may_not_leave_its_tissue() -> None:
    polygons.Cleaning(tolerance_um=200)
    with pytest.raises(errors.UsageError, match="by 200 um at most"):
        polygons.Cleaning(tolerance_um=201)


def test_a_piece_is_measured_after_its_small_holes_are_filled() -> None:
    """10 x 10 px around a hole of 8 x 8: 36 um2 of tissue, 100 with the hole filled."""
    mask = np.ones((10, 10), bool)
    mask[1:9, 1:9] = False
    cleaning = polygons.Cleaning(min_object_um2=50, min_hole_um2=70, tolerance_um=0)
    assert polygons.from_mask(mask, (1.0, 1.0), 1.0, cleaning).area == 100
