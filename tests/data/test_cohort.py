from pathlib import Path

import polars as pl
import pytest
from ramps import MakePyramid, ramp

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, index


@pytest.fixture
def indexed(make_pyramid: MakePyramid, tmp_path: Path) -> Path:
    out = tmp_path / "s.parquet"
    (tmp_path / "bad.svs").write_bytes(b"bad")
    index.index([str(make_pyramid("b.tif")), str(tmp_path / "bad.svs")], out)
    return out


def test_slides_without_error_and_their_pixels(indexed: Path) -> None:
    found = cohort.open_cohort(indexed)
    assert [slide.slide for slide in found.slides] == ["b"]
    assert found.table.frame["slide"].to_list() == ["b", "bad"]
    pixels = found.reader.read_region(found.slides[0], 100, 90, 0, 20, 10)
    assert (pixels == ramp((1024, 768), 1)[90:100, 100:120]).all()


def test_patches_carry_their_slides(indexed: Path, tmp_path: Path) -> None:
    table = artifacts.read_table(indexed)
    out = tmp_path / "deep" / "p.parquet"
    header = artifacts.Header(kind="patches", files=cohort.companions(table, out))
    frame = pl.DataFrame(
        {"slide": ["b"], "x_px0": [0.0], "y_px0": [0.0], "mpp": [0.5], "size_px": [8]}
    ).with_columns(tissue_fraction=pl.lit(1.0))
    artifacts.write_table(out, frame, header, attached={"slides": table.frame})
    found = cohort.open_cohort(out)
    assert header.files["tiles"].startswith("../s.tiles-")
    assert cohort.slide_rows(found.table).height == 2
    assert found.reader.read_patch(found.slides[0], 0, 0, 0.5, 8).shape == (8, 8, 3)
    artifacts.write_table(out, frame, header)
    with pytest.raises(errors.InputError, match="does not carry its slides"):
        cohort.open_cohort(out)


def test_companions_name_the_root_as_well(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    index.index([str(make_pyramid())], tmp_path / "a" / "s.parquet", root=tmp_path)
    table = artifacts.read_table(tmp_path / "a" / "s.parquet")
    files = cohort.companions(table, tmp_path / "b" / "c" / "t.parquet")
    assert files["root"] == "../.."
    assert files["tiles"] == f"../../a/{table.header.files['tiles']}"


def test_a_lost_tile_table(indexed: Path, tmp_path: Path) -> None:
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(errors.InputError, match="which is gone"):
        cohort.open_cohort(indexed)


def test_damaged_rows(indexed: Path) -> None:
    table = artifacts.read_table(indexed)
    good = table.frame.filter(pl.col("slide") == "b")

    def level(**fields: object) -> pl.DataFrame:
        (row,) = good.iter_rows(named=True)
        levels = [row["levels"][0], {**row["levels"][1], **fields}]
        return good.with_columns(levels=pl.Series([levels], dtype=good.schema["levels"]))

    artifacts.write_table(indexed, level(), table.header)
    assert len(cohort.open_cohort(indexed).slides[0].levels) == 2
    for frame in (
        good.with_columns(mpp=pl.lit(0.0)),
        good.with_columns(uri=pl.lit(None, pl.String)),
        good.with_columns(levels=pl.lit(None, good.schema["levels"])),
        good.with_columns(levels=pl.lit([], good.schema["levels"])),
        level(width_px=2000),
        level(height_px=0),
        level(tile_width_px=0),
        level(tiles=47),
        level(codec=None),
        level(first_tile=None),
    ):
        artifacts.write_table(indexed, frame, table.header)
        with pytest.raises(errors.InputError, match="damaged row of slides .b"):
            cohort.open_cohort(indexed)


def test_slides_are_a_sequence_made_as_needed(indexed: Path) -> None:
    table = artifacts.read_table(indexed)
    good = table.frame.filter(pl.col("slide") == "b")
    many = pl.concat([good.with_columns(slide=pl.lit(f"s{number}")) for number in range(5)])
    artifacts.write_table(indexed, many, table.header)
    slides = cohort.open_cohort(indexed).slides
    assert len(slides) == 5
    assert [slide.slide for slide in slides] == ["s0", "s1", "s2", "s3", "s4"]
    assert (slides[-1].slide, [slide.slide for slide in slides[1:3]]) == ("s4", ["s1", "s2"])
    assert slides[2] is slides[2]
    with pytest.raises(IndexError):
        slides[5]


def test_another_kind(tmp_path: Path) -> None:
    frame = pl.DataFrame({"metric": ["x"], "split": ["y"], "run": [1], "value": [0.5]})
    artifacts.write_table(tmp_path / "x.parquet", frame, artifacts.Header(kind="scores"))
    with pytest.raises(errors.InputError, match="is of kind scores"):
        cohort.open_cohort(tmp_path / "x.parquet")
