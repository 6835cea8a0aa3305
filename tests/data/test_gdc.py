"""TCGA slides: manifests and barcodes, and the bucket's layout on a real S3 server."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import servers
from ramps import MakePyramid

from pathfm_cli import errors
from pathfm_cli.data import cohort, gdc, index
from pathfm_cli.wsi import remote

ID = "01234567-89ab-cdef-0123-456789abcde"
HEAD = "id\tfilename\tmd5\tsize\tstate\n"
DX = "TCGA-2J-AAB6-01Z-00-DX1.85E9D6BE-3D4E-4F8C-B2C1-1A2B3C4D5E6F.svs"
TS = "TCGA-2J-AAB6-01A-01-TS1.0A1B2C3D-0000-4000-8000-000000000001.svs"


@pytest.mark.parametrize(
    ("name", "case", "sample", "kind", "preparation"),
    [
        (DX, "TCGA-2J-AAB6", "TCGA-2J-AAB6-01Z", "DX", "ffpe"),
        (TS, "TCGA-2J-AAB6", "TCGA-2J-AAB6-01A", "TS", "frozen"),
        ("TCGA-CR-7395-11B-01-BS2.x.svs", "TCGA-CR-7395", "TCGA-CR-7395-11B", "BS", "frozen"),
        ("TCGA-CR-7395-01A-01-MS1.svs", "TCGA-CR-7395", "TCGA-CR-7395-01A", "MS", "frozen"),
        ("C3L-00001-21.svs", None, None, None, None),
    ],
)
def test_barcodes(name: str, case, sample, kind, preparation) -> None:
    assert gdc.barcode(name) == {
        "case": case,
        "sample": sample,
        "slide_kind": kind,
        "preparation": preparation,
    }


def test_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "gdc_manifest.txt"
    path.write_text(
        HEAD
        + f"{ID}1\t{TS}\tab12\t7\treleased\n{ID}2\treport.pdf\tcd\t9\treleased\n"
        + f"{ID}3\tC3L-00001-21.svs\tef34\t8\tvalidated\n"
    )
    found, notes = gdc.read(path)
    assert [(source.slide, source.path, source.size_bytes) for source in found] == [
        ("C3L-00001-21", f"s3://tcga-2-open/{ID}3/C3L-00001-21.svs", 8),
        (TS[:-4], f"s3://tcga-2-open/{ID}1/{TS}", 7),
    ]
    assert found[1].columns == {
        "case": "TCGA-2J-AAB6",
        "sample": "TCGA-2J-AAB6-01A",
        "slide_kind": "TS",
        "preparation": "frozen",
        "gdc_id": f"{ID}1",
        "md5": "ab12",
    }
    assert notes == (
        f"1 of 3 files of {path} are no slides: left out",
        "1 slides have no TCGA barcode, such as C3L-00001-21",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id\tfilename\n", "no GDC manifest: it has no column md5"),
        ("", "cannot be read as a manifest"),
        (HEAD, "lists no slide among its 0 files"),
        (HEAD + f"{ID}1\treport.pdf\tcd\t9\tx\n", "lists no slide among its 1 files"),
        (HEAD + f"../{ID}1\ta.svs\tcd\t9\tx\n", "a damaged row: ../"),
        (HEAD + f"{ID}1\t../a.svs\tcd\t9\tx\n", "a damaged row"),
        (HEAD + f"{ID}1\ta.svs\tcd\tmany\tx\n", "a damaged row"),
    ],
)
def test_manifests_that_are_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "m.txt").write_text(text)
    with pytest.raises(errors.InputError, match=sentence) as told:
        gdc.read(tmp_path / "m.txt")
    assert str(told.value).endswith(".")
    with pytest.raises(errors.InputError, match="does not exist"):
        gdc.read(tmp_path / "absent.txt")


def test_the_open_bucket_is_indexed_and_read_without_credentials(
    make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto")
    bodies = {DX: make_pyramid("dx.tif"), TS: make_pyramid("ts.tif", mpp=0.5)}
    objects = {
        f"{ID}{n}/{name}": path.read_bytes() for n, (name, path) in enumerate(bodies.items())
    }
    size = [len(body) for body in objects.values()]
    manifest = tmp_path / "m.txt"
    manifest.write_text(
        HEAD
        + f"{ID}0\t{DX}\tab\t{size[0]}\treleased\n{ID}1\t{TS}\tcd\t{size[1]}\treleased\n"
        + f"{ID}1\t{TS.replace('TS1', 'BS9')}\tcd\t5\treleased\n"
    )
    for name in servers.KEYS:
        monkeypatch.delenv(name, raising=False)
    with servers.s3() as address:
        servers.bucket(address, "tcga-2-open", objects)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        remote.client.cache_clear()
        try:
            command = [sys.executable, "-m", "pathfm_cli", "index", "--gdc-manifest"]
            done = subprocess.run(
                [*command, manifest, "-o", tmp_path / "s.parquet"],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 4, done.stderr
            assert json.loads(done.stdout)["failed"] == 1
            frame = pl.read_parquet(tmp_path / "s.parquet")
            assert frame.select("case", "slide_kind", "preparation", "mpp").rows() == [
                ("TCGA-2J-AAB6", "BS", "frozen", None),
                ("TCGA-2J-AAB6", "TS", "frozen", pytest.approx(0.5)),
                ("TCGA-2J-AAB6", "DX", "ffpe", pytest.approx(0.25)),
            ]
            assert frame["uri"][2] == f"s3://tcga-2-open/{ID}0/{DX}"
            assert frame["error"][0] == "does not exist"
            found = cohort.open_cohort(tmp_path / "s.parquet")
            index.index([str(bodies[DX])], tmp_path / "l.parquet")
            local = cohort.open_cohort(tmp_path / "l.parquet")
            pixels = found.reader.read_region(found.slides[1], 100, 90, 0, 200, 150)
            expected = local.reader.read_region(local.slides[0], 100, 90, 0, 200, 150)
            assert (pixels == expected).all() and pixels.std() > 10
        finally:
            remote.client.cache_clear()


def test_a_size_that_differs_from_the_manifest_is_an_error(
    make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_pyramid(f"{ID}0/{DX}".replace("/", "_"))
    folder = tmp_path / "web" / f"{ID}0"
    folder.mkdir(parents=True)
    path.rename(folder / DX)
    size = (folder / DX).stat().st_size
    (tmp_path / "m.txt").write_text(HEAD + f"{ID}0\t{DX}\tab\t{size + 1}\treleased\n")
    with servers.web(tmp_path / "web") as address:
        monkeypatch.setattr(gdc, "BUCKET", address)
        index.index([], tmp_path / "s.parquet", manifest=tmp_path / "m.txt")
    (row,) = pl.read_parquet(tmp_path / "s.parquet").iter_rows(named=True)
    assert row["error"] == f"it has {size} bytes, not {size + 1} as its manifest says"
