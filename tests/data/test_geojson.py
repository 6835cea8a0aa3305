import json
from pathlib import Path

import pytest
import shapely

from pathfm_cli import artifacts, errors
from pathfm_cli.data import geojson


def test_a_feature_is_what_qupath_reads(ring) -> None:
    """Keys as QuPath writes them: object type, and a classification with a name and a colour."""
    both = shapely.multipolygons([*shapely.get_parts(ring), shapely.box(1 / 3, 0, 2, 2)])
    collection = geojson.features(both)
    assert collection["type"] == "FeatureCollection" and len(collection["features"]) == 2
    first, second = collection["features"]
    assert first["type"] == "Feature"
    assert first["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Tissue", "color": [0, 160, 0]},
    }
    assert first["geometry"]["type"] == "Polygon" and len(first["geometry"]["coordinates"]) == 2
    outer = first["geometry"]["coordinates"][0]
    assert outer[0] == outer[-1] and sorted(map(tuple, outer[1:])) == [
        (100, 100),
        (100, 900),
        (900, 100),
        (900, 900),
    ]
    assert [0.33, 0.0] in second["geometry"]["coordinates"][0]


def test_no_tissue_is_an_empty_collection() -> None:
    assert geojson.features(shapely.MultiPolygon())["features"] == []


def test_export_writes_a_file_a_slide_in_the_bounds_of_the_slide(
    demo_tissue: Path, tmp_path: Path
) -> None:
    assert geojson.export(demo_tissue, tmp_path / "new" / "folder") == 1
    collection = json.loads(
        (tmp_path / "new" / "folder" / "CMU-1-Small-Region.geojson").read_text()
    )
    shapes = [shapely.geometry.shape(f["geometry"]) for f in collection["features"]]
    assert all(shape.is_valid for shape in shapes)
    x0, y0, x1, y1 = shapely.total_bounds(shapes)
    assert 0 <= x0 < x1 <= 2220 and 0 <= y0 < y1 <= 2967
    wkb = artifacts.read_table(demo_tissue).frame["geometry"][0]
    assert sum(s.area for s in shapes) == pytest.approx(shapely.from_wkb(wkb).area, rel=1e-4)


def test_a_slide_id_does_not_lead_out_of_the_folder() -> None:
    assert geojson.file_for("out", "../../etc/x", ".png") == Path("out/..%2F..%2Fetc%2Fx.png")
    assert geojson.file_for("out", "a\0\n%\x1bb", ".png") == Path("out/a%00%0A%25%1Bb.png")


def test_two_slides_never_share_a_file_and_no_name_is_too_long() -> None:
    """Cut names end with a digest: ids of 300 letters that part at the last one stay apart."""
    ids = ["a/k", "a_k", "a%2Fk", "a%252Fk", "x" * 300 + "1", "x" * 300 + "2", "\u00e9" * 150]
    files = {geojson.file_for("out", slide, ".geojson") for slide in ids}
    assert len(files) == len(ids) and {file.parent for file in files} == {Path("out")}
    assert max(len(file.name.encode()) for file in files) <= 200
    assert geojson.file_for("", "a_k", ".png").name == "a_k.png"


def test_what_was_edited_is_not_written_over(demo_tissue: Path, tmp_path: Path) -> None:
    file = tmp_path / "CMU-1-Small-Region.geojson"
    geojson.export(demo_tissue, tmp_path)
    written = file.read_text()
    assert geojson.export(demo_tissue, tmp_path) == 1  # Its own file is no hindrance.
    edited = json.loads(written)
    edited["features"] = edited["features"][:0]
    for text in (json.dumps(edited), "[]", "{", written[:-9]):
        file.write_text(text)
        with pytest.raises(errors.OutputClash, match="geojson was edited") as caught:
            geojson.export(demo_tissue, tmp_path)
        assert "--overwrite" in caught.value.hint and file.read_text() == text
    geojson.export(demo_tissue, tmp_path, overwrite=True)
    assert file.read_text() == written
    file.write_text(json.dumps(json.loads(written), indent=1))  # Only spaces were changed.
    geojson.check(tmp_path, ["CMU-1-Small-Region", "new"])
