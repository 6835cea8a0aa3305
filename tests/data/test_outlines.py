import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from pathfm_cli import errors
from pathfm_cli.data import geojson, outlines, polygons


def square(x: float, side: float, name: str | None = None) -> dict:
    """A feature as QuPath writes it: a square from (x, 0)."""
    properties = {"objectType": "annotation"}
    if name is not None:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    ring = [[x, 0], [x + side, 0], [x + side, side], [x, side], [x, 0]]
    shape = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": shape, "properties": properties}


def collection(*features: dict) -> dict:
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def write(tmp_path: Path):
    def write(document: object) -> Path:
        path = tmp_path / "slide.geojson"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


@pytest.mark.parametrize(
    "document",
    [
        collection(square(0, 4)),
        square(0, 4),
        [square(0, 4)],
        square(0, 4)["geometry"],
        {"type": "GeometryCollection", "geometries": [square(0, 4)["geometry"]]},
        {"type": "MultiPolygon", "coordinates": [square(0, 4)["geometry"]["coordinates"]]},
    ],
    ids=["collection", "feature", "list", "polygon", "geometries", "multipolygon"],
)
def test_every_form_of_geojson_gives_the_area(write, document: object) -> None:
    found = outlines.read(write(document))
    assert found.geom_type == "MultiPolygon" and found.bounds == (0, 0, 4, 4)


def test_classes_are_taken_added_and_taken_away(write) -> None:
    """Tumor 0 to 4, Stroma 10 to 12, Pen 1 to 2, one without a class 20 to 23."""
    path = write(
        collection(
            square(0, 4, "Tumor"), square(10, 2, "Stroma"), square(1, 1, "Pen"), square(20, 3)
        )
    )
    assert outlines.classes(path) == {"Tumor", "Stroma", "Pen", outlines.UNCLASSIFIED}
    assert outlines.read(path).area == 16 + 4 + 9 - 1
    assert outlines.read(path, include=("Tumor",)).area == 16 - 1
    assert outlines.read(path, include=("Tumor",), exclude=()).area == 16
    assert outlines.read(path, exclude=("Tumor", "Pen")).area == 4 + 9
    assert outlines.read(path, include=("Nothing",)).is_empty


def test_a_class_may_be_a_plain_word(write) -> None:
    feature = square(0, 4)
    feature["properties"]["classification"] = "Ignore*"
    assert outlines.read(write(feature)).is_empty


def test_points_and_lines_have_no_area(write) -> None:
    line = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    empty = {"type": "Feature", "geometry": None, "properties": None}
    assert outlines.read(
        write(collection({"type": "Feature", "geometry": line}, point, empty))
    ).is_empty


def test_a_drawing_that_crosses_itself_becomes_valid(write) -> None:
    """A bow tie of two triangles with 4 px2 each."""
    tie = [[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]]
    found = outlines.read(write({"type": "Polygon", "coordinates": [tie]}))
    assert found.is_valid and found.area == 8


def test_what_is_exported_comes_back_within_the_rounding(write, ring) -> None:
    """Coordinates are kept to 1/100 pixel."""
    random = np.random.default_rng(0)
    mask = random.random((60, 60)) < 0.6
    traced = polygons.from_mask(mask, (16.014, 15.98), 0.5, polygons.Cleaning(min_object_um2=0))
    for tissue in (ring, traced, shapely.MultiPolygon()):
        back = outlines.read(write(geojson.features(tissue)))
        assert shapely.area(shapely.symmetric_difference(back, tissue)) <= 0.01 * tissue.length
        if not tissue.is_empty:
            assert shapely.hausdorff_distance(back.boundary, tissue.boundary) <= 0.01


WRONG = {
    "no JSON": ("{", "is no JSON"),
    "deep JSON": ("[" * 100_000, "is no JSON"),
    "another JSON": ('{"a": 1}', "is no GeoJSON of annotations"),
    "a number": ("3", "is no GeoJSON of annotations"),
    "a coordinate of another world": (
        {"type": "Polygon", "coordinates": [[[0, 0], [1e308, 1], [1, -1e308], [0, 0]]]},
        "has a coordinate beyond 1e\\+09 pixels",
    ),
    "a ring of two points": (
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        "is no GeoJSON of annotations",
    ),
    "a coordinate that is no number": (
        '{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [1, 1], [0, 0]]]}',
        "is no GeoJSON of annotations",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_geojson_is_named(write, name: str) -> None:
    document, message = WRONG[name]
    path = write(document)
    with pytest.raises(errors.SlideError, match=f"slide.geojson {message}"):
        outlines.read(path)


def test_a_missing_or_huge_file_is_named(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.SlideError, match="cannot be read: No such file"):
        outlines.read(tmp_path / "none.geojson")
    monkeypatch.setattr(outlines, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(errors.SlideError, match="is larger than 1 MiB"):
        outlines.read(write(" " * (2 << 20)))


def test_outlines_are_cut_at_the_edge_of_the_slide_and_refused_beyond_it(ring) -> None:
    assert outlines.within(ring, 500, 2000, "x").bounds == (100, 100, 500, 900)
    assert outlines.within(shapely.MultiPolygon(), 9, 9, "x").is_empty
    with pytest.raises(errors.SlideError, match="x outlines nothing inside the slide of 50 x 60"):
        outlines.within(ring, 50, 60, "x")


def test_only_geojson_files_of_a_folder_count(tmp_path: Path) -> None:
    for name in ("b.geojson", "a.json", "c.png"):
        (tmp_path / name).touch()
    assert [file.name for file in outlines.files(tmp_path)] == ["a.json", "b.geojson"]
    assert outlines.files(tmp_path / "none") == []


def test_heights_are_dropped(write) -> None:
    ring = [[0, 0, 7], [4, 0, 7], [4, 4, 7], [0, 0, 7]]
    found = outlines.read(write({"type": "Polygon", "coordinates": [ring]}))
    assert not shapely.has_z(found) and found.area == 8


def test_glass_and_its_kin_are_no_tissue(write) -> None:
    for name in ("Ignore*", "Background", "Artefact", "Artifact", "Pen", "Glass"):
        assert outlines.read(write(collection(square(0, 4), square(0, 2, name)))).area == 12


def test_a_tangle_is_refused_before_its_repair(write) -> None:
    """1,500 random corners cross each other half a million times; 60 are repaired as ever."""
    corners = np.random.default_rng(0).integers(0, 10_000, (1500, 2)).tolist()
    tangle = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    with pytest.raises(errors.SlideError, match="crosses itself without end"):
        outlines.read(write(json.dumps(tangle)))
    few = {"type": "Polygon", "coordinates": [[*corners[:60], corners[0]]]}
    assert outlines.read(write(json.dumps(few))).area > 1e6


def test_a_long_outline_that_crosses_itself_once_is_repaired(write) -> None:
    turn = np.linspace(0, 2 * np.pi, 100_000)
    corners = np.stack([1e4 + 9e3 * np.cos(turn), 1e4 + 9e3 * np.sin(turn)], 1).tolist()
    corners[500], corners[501] = corners[501], corners[500]
    circle = {"type": "Polygon", "coordinates": [[*corners[:-1], corners[0]]]}
    area = outlines.read(write(json.dumps(circle))).area
    assert area == pytest.approx(np.pi * 9e3**2, rel=1e-4)
