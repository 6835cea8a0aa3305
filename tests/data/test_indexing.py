"""Slides to an artifact: rows, ids, joins, errors, and what a second run does."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
import tifffile
from ramps import MakePyramid

from pathfm_cli import artifacts, errors
from pathfm_cli.data import cohort, headers, index, plan


def rows(out: Path) -> dict[str, dict]:
    return {row["slide"]: row for row in pl.read_parquet(out).iter_rows(named=True)}


@pytest.fixture
def three(make_pyramid: MakePyramid, tmp_path: Path) -> Path:
    """A folder with two good slides and one broken."""
    folder = tmp_path / "slides"
    folder.mkdir()
    make_pyramid("b.tif", mpp=0.5).rename(folder / "b.tif")
    make_pyramid("a.tif", size=(640, 512)).rename(folder / "a.tif")
    (folder / "c.svs").write_bytes(b"no slide at all")
    return folder


def test_rows_of_the_real_slides(slides_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    done = index.index([str(slides_folder)], out, slides_folder / "slides.csv")
    assert (done.record["rows"], done.record["failed"], done.notes) == (12, 2, ())
    assert [slide for slide, _ in done.failures] == [
        "TCGA-CR-7395-01A-01-TS1",
        "lipoma_colon_HE_nompp",
    ]
    assert "--mpp-override TCGA-CR-7395-01A-01-TS1=0.25" in done.hint
    found = rows(out)
    assert list(found) == sorted(found)
    truth = pl.read_csv(slides_folder / "slides.csv")
    for row in truth.iter_rows(named=True):
        ours = found[row["slide"]]
        assert ours["organ"] == row["organ"]
        assert ours["stain"] == row["stain"] == "HE"
        if row["true_mpp"] is not None:
            assert ours["mpp"] == pytest.approx(row["true_mpp"])
    bs27 = found["BS27_duodenum_HE_40x_ycc422"]
    assert (bs27["width_px0"], bs27["height_px0"], bs27["objective"]) == (17707, 11341, 40.0)
    assert bs27["size_bytes"] == os.path.getsize(bs27["uri"])
    assert bs27["etag"] == str(os.stat(bs27["uri"]).st_mtime_ns)
    assert [level["downsample"] for level in bs27["levels"]] == pytest.approx(
        [1.0, 4.00051527330485, 16.01415366618649]  # openslide's level_downsamples
    )
    assert {row["mpp_source"] for row in found.values()} == {
        "aperio",
        "ome",
        "resolution-tag",
        None,
    }


def test_error_rows_keep_what_is_known(slides_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    index.index([str(slides_folder / "lipoma_colon_HE_nompp.svs")], out)
    (row,) = rows(out).values()
    assert row["error"] == "no trustworthy mpp (the file states none)"
    assert (row["vendor"], row["width_px0"], row["compression"]) == ("aperio", 7515, "jpeg-ycbcr")
    assert (row["mpp"], row["levels"]) == (None, None)


def test_every_odd_file_is_an_error_row_or_reads(formats_folder: Path, tmp_path: Path) -> None:
    files = [str(path) for path in formats_folder.rglob("*") if path.is_file()]
    files.remove(str(formats_folder / "openslide-fixtures" / "boxes-no-icc.png"))
    files.remove(str(formats_folder / "openslide-fixtures" / "boxes.png"))
    out = tmp_path / "s.parquet"
    index.index(files, out)
    found = rows(out)
    # DICOM files stand for their folder.
    series = {Path(file).parent.name for file in files if file.endswith(".dcm")}
    assert len(found) == len([file for file in files if not file.endswith(".dcm")]) + len(series)
    good = sorted(slide for slide, row in found.items() if row["error"] is None)
    assert good == sorted([*series, "fluorescence-DAPI", "small", "unreadable"])
    assert "352.8" in found["boxes"]["error"]
    assert "0.00499" in found["CMU-1-Small-Region.jpeg"]["error"]


def test_a_file_cut_short_says_so(slides_folder: Path, tmp_path: Path) -> None:
    whole = (slides_folder / "BS19_liver_HE_20x_pyramid.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 9 // 10])
    index.index([str(tmp_path / "cut.tif")], tmp_path / "s.parquet")
    (row,) = rows(tmp_path / "s.parquet").values()
    assert "cut short" in row["error"]


def test_tiles_beyond_the_end_are_found_by_the_index(
    make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    path = make_pyramid(factors=(1,))
    with tifffile.TiffFile(path, mode="r+b") as file:
        entry = file.pages[0].tags[324]
        entry.overwrite([*entry.value[:-2], 1 << 30, 1 << 31])
    index.index([str(path)], tmp_path / "s.parquet")
    (row,) = rows(tmp_path / "s.parquet").values()
    assert row["error"] == (
        "2 of 192 tiles of the level of 1024x768 px lie beyond the end of the file: it is cut short"
    )


def test_broken_slides_are_rows(three: Path, tmp_path: Path) -> None:
    done = index.index([str(three)], tmp_path / "s.parquet")
    assert done.failures == (
        ("c", "a file of unknown type (it begins with b'no s'), not a TIFF slide"),
    )
    assert (done.record["rows"], done.record["failed"], done.hint) == (3, 1, "")
    assert done.summary[0].endswith("3 slides, 1 with an error")


def test_only_broken_slides(three: Path, tmp_path: Path) -> None:
    done = index.index([str(three / "c.svs")], tmp_path / "s.parquet")
    assert done.record["failed"] == 1
    assert cohort.open_cohort(tmp_path / "s.parquet").slides[:] == []


def test_too_many_failures(three: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.TooManyFailures, match="c: a file of unknown type"):
        index.index([str(three)], tmp_path / "s.parquet", max_failed=0)
    assert os.listdir(tmp_path) == ["slides"]
    assert index.index([str(three)], tmp_path / "s.parquet", max_failed=1).record["rows"] == 3


@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_files_give_the_same_bytes(three: Path, tmp_path: Path, workers: int) -> None:
    index.index([str(three)], tmp_path / "a" / "s.parquet")
    index.index([str(three / "*")], tmp_path / "b" / "s.parquet", workers=workers)
    names = sorted(os.listdir(tmp_path / "a"))
    assert len(names) == 2
    assert names == sorted(os.listdir(tmp_path / "b"))
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_progress_counts_every_slide(three: Path, tmp_path: Path) -> None:
    told = []
    index.index([str(three)], tmp_path / "s.parquet", progress=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


# mpp


@pytest.mark.parametrize(
    ("overrides", "a", "b"),
    [
        ([], (0.25, "resolution-tag"), (0.5, "resolution-tag")),
        (["a=0.3"], (0.3, "override"), (0.5, "resolution-tag")),
        (["a.tif=0.3", "b=0.4"], (0.3, "override"), (0.4, "override")),
        (["0.9"], (0.25, "resolution-tag"), (0.5, "resolution-tag")),
    ],
)
def test_overrides(three: Path, tmp_path: Path, overrides: list[str], a, b) -> None:
    index.index([str(three)], tmp_path / "s.parquet", mpp_overrides=overrides)
    found = rows(tmp_path / "s.parquet")
    assert (found["a"]["mpp"], found["a"]["mpp_source"]) == (pytest.approx(a[0]), a[1])
    assert (found["b"]["mpp"], found["b"]["mpp_source"]) == (pytest.approx(b[0]), b[1])


def test_an_override_for_all_fills_in_what_is_missing(slides_folder: Path, tmp_path: Path) -> None:
    index.index([str(slides_folder)], tmp_path / "s.parquet", mpp_overrides=["1.0112"])
    found = rows(tmp_path / "s.parquet")
    assert found["lipoma_colon_HE_nompp"]["mpp"] == 1.0112
    assert found["lipoma_colon_HE_nompp"]["mpp_source"] == "override"
    assert found["BS3_liver_HE_10x"]["mpp"] == 1.0096
    assert all(row["error"] is None for row in found.values())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["q=0.5"], "there is no slide q"),
        (["a=0.5", "a=0.6"], "given twice"),
        (["0.5", "0.6"], "given twice"),
        (["a=40x"], "is no mpp"),
    ],
)
def test_wrong_overrides(three: Path, tmp_path: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(errors.UsageError, match=sentence):
        index.index([str(three)], tmp_path / "s.parquet", mpp_overrides=overrides)


# Tables


def test_a_table_lists_slides_and_another_joins(three: Path, tmp_path: Path) -> None:
    (three / "list.csv").write_text("path,age\nb.tif,70\na.tif,61\n")
    (tmp_path / "m.csv").write_text("slide,stain,grade\na,HE,2\n")
    out = tmp_path / "s.parquet"
    done = index.index([str(three / "list.csv")], out, tmp_path / "m.csv")
    assert done.notes == (f"1 of 2 slides have no row in {tmp_path / 'm.csv'}: b",)
    frame = pl.read_parquet(out).select("slide", "age", "stain", "grade")
    assert frame.rows() == [("a", 61, "HE", 2), ("b", 70, None, None)]


def test_a_column_in_both_tables(three: Path, tmp_path: Path) -> None:
    (three / "list.csv").write_text("path,age\nb.tif,70\n")
    (tmp_path / "m.csv").write_text("slide,age\nb,70\n")
    with pytest.raises(errors.UsageError, match="both have a column age"):
        index.index([str(three / "list.csv")], tmp_path / "s.parquet", tmp_path / "m.csv")


def test_a_file_that_is_gone_is_an_error_row(three: Path, tmp_path: Path) -> None:
    (three / "list.csv").write_text("path\nb.tif\nx.tif\n")
    index.index([str(three / "list.csv")], tmp_path / "s.parquet")
    found = rows(tmp_path / "s.parquet")
    assert found["x"]["error"] == "does not exist"
    assert found["b"]["error"] is None


# A second run


def test_nothing_to_do(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "s.parquet"
    first = index.index([str(three)], out)
    monkeypatch.setattr(headers, "read", None)
    again = index.index([str(three)], out)
    assert again.record == first.record
    assert again.failures == first.failures
    assert again.notes == (f"{out} is up to date",)


def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the slides whose headers are read from now on."""
    names: list[str] = []
    original = headers.read

    def spy(file, overrides):
        names.append(file.source.slide)
        return original(file, overrides)

    monkeypatch.setattr(headers, "read", spy)
    return names


def test_only_new_changed_and_bad_slides_are_read(
    three: Path, make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.parquet"
    first = index.index([str(three)], out)
    before = sorted(tmp_path.glob("*.safetensors"))
    make_pyramid("d.tif", size=(256, 256)).rename(three / "d.tif")
    make_pyramid("b.tif", size=(300, 200)).replace(three / "b.tif")
    names = read_names(monkeypatch)
    second = index.index([str(three)], out)
    assert sorted(names) == ["b", "c", "d"]
    assert second.record["id"] != first.record["id"]
    assert second.notes == (
        "1 of 4 slides are unchanged",
        f"kept {before[0]}: artifacts made from the old index may need it",
    )
    assert before[0].exists()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    index.index([str(three)], tmp_path / "fresh" / "s.parquet")
    assert (tmp_path / "fresh" / "s.parquet").read_bytes() == out.read_bytes()
    new = tmp_path / artifacts.read_header(out).files["tiles"]
    assert (tmp_path / "fresh" / new.name).read_bytes() == new.read_bytes()


def test_slides_that_are_left_out_are_told(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    index.index([str(three)], out)
    done = index.index([str(three / "a.tif")], out)
    assert "2 slides of the old index are not named any more: left out" in done.notes
    assert list(rows(out)) == ["a"]


def test_metadata_follows_new_slides_but_alone_it_is_another_setting(
    three: Path, make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    out, table = tmp_path / "s.parquet", tmp_path / "m.csv"
    table.write_text("slide,age\na,61\nb,70\nc,1\n")
    index.index([str(three)], out, table)
    table.write_text("slide,age\na,62\nb,70\nc,1\n")
    with pytest.raises(errors.OutputClash, match="was made with metadata="):
        index.index([str(three)], out, table)
    make_pyramid("d.tif", size=(256, 256)).rename(three / "d.tif")
    table.write_text("slide,age\na,62\nb,70\nc,1\nd,5\n")
    index.index([str(three)], out, table)
    assert pl.read_parquet(out)["age"].to_list() == [62, 70, 1, 5]


def test_other_settings_and_other_slides_clash(
    three: Path, make_pyramid: MakePyramid, tmp_path: Path
) -> None:
    out = tmp_path / "s.parquet"
    index.index([str(three)], out)
    whole = out.read_bytes()
    with pytest.raises(errors.OutputClash, match="mpp_override.a"):
        index.index([str(three)], out, mpp_overrides=["a=0.3"])
    with pytest.raises(errors.OutputClash, match="index of other slides"):
        index.index([str(make_pyramid("other.tif"))], out)
    assert out.read_bytes() == whole
    index.index([str(three)], out, mpp_overrides=["a=0.3"], overwrite=True)
    assert rows(out)["a"]["mpp"] == 0.3


def test_a_lost_or_damaged_tile_table_is_made_again(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    index.index([str(three)], out)
    (tiles,) = tmp_path.glob("*.safetensors")
    whole = tiles.read_bytes()
    for damage in (tiles.unlink, lambda: tiles.write_bytes(whole[:50])):
        damage()
        index.index([str(three)], out)
        assert tiles.read_bytes() == whole


@pytest.mark.parametrize("text", [b"PAR1", b"slide,mpp\n", b""])
def test_another_file_is_in_the_way(three: Path, tmp_path: Path, text: bytes) -> None:
    out = tmp_path / "s.parquet"
    out.write_bytes(text)
    with pytest.raises(errors.OutputClash, match="is no pathfm artifact"):
        index.index([str(three)], out)
    assert out.read_bytes() == text


# Relative paths


def test_slides_and_index_may_move_together(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.index([str(three)], tmp_path / "out" / "s.parquet", root=tmp_path)
    assert {row["uri"] for row in rows(tmp_path / "out" / "s.parquet").values()} == {
        "slides/a.tif",
        "slides/b.tif",
        "slides/c.svs",
    }
    (tmp_path / "moved").mkdir()
    shutil.move(three, tmp_path / "moved" / "slides")
    shutil.move(tmp_path / "out", tmp_path / "moved" / "out")
    found = cohort.open_cohort(tmp_path / "moved" / "out" / "s.parquet")
    assert found.slides[0].uri == str(tmp_path / "moved" / "slides" / "a.tif")
    assert found.reader.read_region(found.slides[0], 0, 0, 0, 9, 9).min() < 255
    monkeypatch.setenv("PATHFM_ROOT", "/data")
    found = cohort.open_cohort(tmp_path / "moved" / "out" / "s.parquet")
    assert found.slides[0].uri == "/data/slides/a.tif"


def test_a_slide_outside_the_root(three: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(errors.UsageError, match="is not below --root"):
        index.index([str(three)], tmp_path / "s.parquet", root=tmp_path / "elsewhere")
    with pytest.raises(errors.UsageError, match="is no folder"):
        index.index([str(three)], tmp_path / "s.parquet", root=tmp_path / "absent")


def test_a_plan_opens_no_slide(three: Path, tmp_path: Path) -> None:
    done = plan.prepare([str(three)], tmp_path / "s.parquet").summary()
    assert (done["slides"], done["unchanged"], done["missing"]) == (3, 0, 0)
    assert done["bytes"] == sum(path.stat().st_size for path in three.iterdir())
    assert os.listdir(tmp_path) == ["slides"]
