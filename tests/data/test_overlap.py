import numpy as np
import pytest
import shapely

from pathfm_cli.data import overlap


def shares(tissue: shapely.Geometry, *squares: tuple[float, float], side: float) -> list[float]:
    x, y = np.array(squares, dtype=float).T
    return overlap.Overlap(tissue).fraction(x, y, side).tolist()


def test_squares_on_a_ring_have_the_shares_that_can_be_counted(ring) -> None:
    """The ring: 100 to 900, its hole 400 to 600; squares of 200."""
    squares = [(150, 150), (400, 400), (0, 0), (300, 300), (800, 300), (-500, 0), (900, 300)]
    assert shares(ring, *squares, side=200) == pytest.approx([1, 0, 0.25, 0.75, 0.5, 0, 0])


def test_a_square_larger_than_the_tissue_holds_all_of_it(ring) -> None:
    assert shares(ring, (0, 0), (-1000, -1000), side=2000) == pytest.approx([0.15, 0.15])


def test_slanted_edges_are_cut_exactly() -> None:
    """A triangle (0, 0), (4, 0), (0, 4): the square from (1, 1) of side 2 holds its corner half."""
    triangle = shapely.multipolygons([shapely.Polygon([(0, 0), (4, 0), (0, 4)])])
    assert shares(triangle, (0, 0), (1, 1), (2, 2), side=2) == pytest.approx([1, 0.5, 0])
    assert shares(triangle, (1.5, 1.5), side=1) == pytest.approx([0.5])


def test_no_tissue_has_no_share() -> None:
    assert shares(shapely.MultiPolygon(), (0, 0), (-5, 3), side=10) == [0, 0]


def test_no_square_has_no_share(ring) -> None:
    none = np.empty(0)
    assert overlap.Overlap(ring).fraction(none, none, 10.0).shape == (0,)


@pytest.mark.parametrize("seed", range(8))
def test_any_tissue_agrees_with_shapely(seed: int) -> None:
    random = np.random.default_rng(seed)
    stars = []
    for centre in random.uniform(0, 3000, (6, 2)):
        angle = np.sort(random.uniform(0, 2 * np.pi, 60))
        radius = random.uniform(50, 900, 60)
        spokes = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
        stars.append(shapely.make_valid(shapely.Polygon(centre + spokes)))
    whole = shapely.difference(shapely.union_all(stars), shapely.box(1000, 1000, 1400, 2500))
    tissue = shapely.multipolygons(
        [part for part in shapely.get_parts(whole) if part.geom_type == "Polygon"]
    )
    x, y = random.uniform(-1500, 4000, (2, 400))
    for side in (3.0, 128.5, 1700.0):
        expected = shapely.area(shapely.intersection(tissue, shapely.box(x, y, x + side, y + side)))
        found = overlap.Overlap(tissue).area_px0(x, y, side)
        assert np.abs(found - expected).max() <= 1e-9 * side**2
