"""`pathfm index` of URLs: the same rows as of files, few requests, restarts, increments."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import servers
from ramps import MakePyramid

from pathfm_cli import errors
from pathfm_cli.data import cohort, headers, index, journal, sources
from pathfm_cli.wsi import pyramid, remote, retry

OWN = ("uri", "etag")
"""Columns that differ between a file and its copy behind a URL."""


@pytest.fixture
def folder(make_pyramid: MakePyramid, tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    (folder / "sub").mkdir(parents=True)
    make_pyramid("a.tif").rename(folder / "a b.tif")
    make_pyramid("b.tif", size=(512, 256), mpp=0.5).rename(folder / "sub" / "b.tif")
    (folder / "sub" / "c.svs").write_bytes(b"no slide")
    return folder


def urls(address: str) -> list[str]:
    return [f"{address}/a%20b.tif", f"{address}/sub/b.tif", f"{address}/sub/c.svs"]


def test_rows_over_http_equal_those_of_files(folder: Path, tmp_path: Path) -> None:
    index.index([str(folder)], tmp_path / "local.parquet")
    with servers.web(folder) as address:
        done = index.index([*urls(address), f"{address}/x.svs"], tmp_path / "web.parquet")
        local, web = (cohort.open_cohort(tmp_path / f"{n}.parquet") for n in ("local", "web"))
        for one, other in zip(local.slides, web.slides, strict=True):
            place = (10, 20, 0, 300, 200)
            pixels = web.reader.read_region(other, *place)
            assert (pixels == local.reader.read_region(one, *place)).all()
    assert done.failures[1] == ("x", "does not exist")
    frames = [c.table.frame.drop(OWN) for c in (local, web)]
    assert frames[0].equals(frames[1].filter(pl.col("slide") != "x"))
    assert web.table.frame["uri"].to_list()[:2] == urls(address)[:2]


def test_few_requests_and_no_more_bytes_than_headers_need(
    slides_folder: Path, tmp_path: Path
) -> None:
    name = "BS27_duodenum_HE_40x_ycc422.svs"
    with servers.web(slides_folder) as address:
        index.index([f"{address}/{name}"], tmp_path / "s.parquet")
        told = servers.counts(address)
    assert told["HEAD"] + told["GET"] <= 9
    assert told["bytes"] < 400_000


def test_again_reads_only_new_and_changed_slides(
    folder: Path, make_pyramid: MakePyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, names = tmp_path / "s.parquet", []
    read = headers.read
    monkeypatch.setattr(headers, "read", lambda f, o: names.append(f.source.slide) or read(f, o))
    with servers.web(folder) as address:
        first = index.index(urls(address)[:2], out)
        again = index.index(urls(address)[:2], out)
        assert again.record == first.record and names == ["a b", "b"]
        make_pyramid("n.tif", size=(256, 256)).rename(folder / "n.tif")
        # The same size, but another version.
        (folder / "copy").write_bytes((folder / "sub" / "b.tif").read_bytes())
        (folder / "copy").replace(folder / "sub" / "b.tif")
        del names[:]
        done = index.index([*urls(address)[:2], f"{address}/n.tif"], out)
    assert sorted(names) == ["b", "n"]
    assert "1 of 3 slides are unchanged" in done.notes
    assert cohort.open_cohort(out).table.frame.height == 3


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("moto")
    with servers.s3() as address:
        objects = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        servers.bucket(address, "cohort", {**objects, "notes.txt": b"x", "a b.tif.json": b"{}"})
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name, value in servers.KEYS.items():
            monkeypatch.setenv(name, value)
        remote.client.cache_clear()
        yield address
    remote.client.cache_clear()


def test_what_failed_for_the_network_is_read_again_when_it_is_well(
    folder: Path, tmp_path: Path
) -> None:
    """HEAD is answered, every GET is a 503; then the same address serves well."""
    out = tmp_path / "s.parquet"
    with servers.web(folder) as address:
        uri = f"{address}/sub/b.tif"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retry, "ATTEMPTS", 1)
            patch.setattr(remote.Remote, "_get", _unavailable)
            first = index.index([uri], out)
        assert "status 503" in first.failures[0][1]
        again = index.index([uri], out)
        assert again.failures == () and len(cohort.open_cohort(out).slides) == 1
        assert index.index([uri], out).notes[-1] == f"{out} is up to date"


def _unavailable(self: remote.Remote, offset: int, length: int) -> memoryview:
    raise retry.Transient("status 503")


@pytest.mark.parametrize(
    "uri",
    [
        "http://[::1/a.svs",
        "http://127.0.0.1:99999/a.svs",
        "http://ex ample/a.svs",
        "s3://b/a/../c.svs",
    ],
)
def test_an_address_that_is_none_is_a_row_with_an_error(
    uri: str, folder: Path, tmp_path: Path
) -> None:
    done = index.index([uri, str(folder / "a b.tif")], tmp_path / "s.parquet")
    assert len(done.failures) == 1 and len(cohort.open_cohort(tmp_path / "s.parquet").slides) == 1


def test_prefixes_and_patterns_of_a_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(uri: str) -> list[str]:
        return [source.slide for source in sources.expand([uri])]

    assert found("s3://cohort") == found("s3://cohort/**") == ["a b", "b", "c"]
    assert found("s3://cohort/sub/") == found("s3://cohort/sub") == ["b", "c"]
    assert found("s3://cohort/*.tif") == ["a b"]
    assert found("s3://cohort/**/*.tif") == ["a b", "b"]
    assert found("s3://cohort/s?b/[!c]*") == ["b"]
    assert found("s3://cohort/never/looked/up.svs") == ["up"]
    with pytest.raises(errors.InputError, match="holds no slide among 0 objects"):
        found("s3://cohort/none/")
    with pytest.raises(errors.InputError, match="s3://absent: cannot be read"):
        found("s3://absent")
    monkeypatch.setattr(remote.Remote, "open", None)
    done = index.index(["s3://cohort/"], tmp_path / "s.parquet")
    assert (done.record["rows"], done.record["failed"]) == (3, 1)
    assert cohort.open_cohort(tmp_path / "s.parquet").slides[0].uri == "s3://cohort/a b.tif"


def test_a_table_may_list_urls(folder: Path, tmp_path: Path) -> None:
    with servers.web(folder) as address:
        (tmp_path / "list.csv").write_text(f"uri,slide,age\n{urls(address)[0]},one,7\n")
        index.index([str(tmp_path / "list.csv")], tmp_path / "s.parquet")
    frame = pl.read_parquet(tmp_path / "s.parquet")
    assert frame.select("slide", "uri", "age", "error").rows() == [
        ("one", urls(address)[0], 7, None)
    ]


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("https://host/slides/", "a web server cannot be listed"),
        ("https://host/a.svs?sig=1", "a signature or a query"),
        ("ftp://host/a.svs", "ftp:// is not known"),
        ("s3://bucket/list.csv", "a table must lie on disk"),
    ],
)
def test_urls_that_are_refused(uri: str, sentence: str) -> None:
    with pytest.raises(errors.UsageError, match=sentence) as told:
        sources.expand([uri])
    assert told.value.hint


def test_a_killed_run_goes_on(make_pyramid: MakePyramid, tmp_path: Path) -> None:
    source, web = make_pyramid(size=(256, 256)), tmp_path / "web"
    web.mkdir()
    count = 3 * index.CHUNK
    for number in range(count):
        os.link(source, web / f"{number:04d}.tif")
    out = tmp_path / "s.parquet"
    with servers.web(web, "--latency-ms", "20") as address:
        (tmp_path / "list.csv").write_text(
            "uri\n" + "".join(f"{address}/{n:04d}.tif\n" for n in range(count))
        )
        command = [sys.executable, "-m", "pathfm_cli", "index", tmp_path / "list.csv", "-o", out]
        process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not list(tmp_path.glob("s.parquet.parts-*/*.parquet")) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        before = servers.counts(address)["GET"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        after = servers.counts(address)["GET"]
        kept = int(done.stderr.split("pathfm: ")[1].split(" of ")[0])
        assert kept >= index.CHUNK and f"of {count} slides were read before" in done.stderr
        index.index([str(tmp_path / "list.csv")], tmp_path / "fresh" / "s.parquet")
        whole = servers.counts(address)["GET"] - after
    # A few requests of the killed process may still be answered after the first count.
    assert 0 <= after - before - whole * (count - kept) // count <= 4
    assert not list(tmp_path.glob("*.parts-*"))
    assert (tmp_path / "fresh" / "s.parquet").read_bytes() == out.read_bytes()
    (tiles,) = tmp_path.glob("*.safetensors")
    assert (tmp_path / "fresh" / tiles.name).read_bytes() == tiles.read_bytes()


def test_a_damaged_chunk_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "CHUNK", 1)
    out = tmp_path / "s.parquet"
    (folder / "sub" / "z.svs").write_bytes(b"bad as well")
    with pytest.raises(errors.TooManyFailures):
        index.index([str(folder)], out, max_failed=1, workers=1)
    (parts,) = tmp_path.glob("s.parquet.parts-*")
    assert len(list(parts.glob("*.parquet"))) == 3
    (parts / "00000001.safetensors").write_bytes(b"cut")
    assert [row["slide"] for row, _ in journal.Journal(parts).rows()] == ["a b"]
    done = index.index([str(folder)], out)
    assert "1 of 4 slides were read before: going on" in done.notes
    assert not parts.exists()
    fresh = index.index([str(folder)], tmp_path / "fresh" / "s.parquet")
    assert fresh.failures == done.failures
    assert (tmp_path / "fresh" / "s.parquet").read_bytes() == out.read_bytes()


def test_announced_patches_come_once(folder: Path, tmp_path: Path) -> None:
    index.index([str(folder / "a b.tif")], tmp_path / "local.parquet")
    local = cohort.open_cohort(tmp_path / "local.parquet")
    with servers.web(folder) as address:
        index.index([urls(address)[0]], tmp_path / "web.parquet")
        web = cohort.open_cohort(tmp_path / "web.parquet")

        def wanted(found: cohort.Cohort) -> list[pyramid.Request]:
            return [pyramid.Request(found.slides[0], x, 70, 0.25, 100) for x in (5, 300, 700)]

        before = servers.counts(address)["GET"]
        web.reader.announce(wanted(web))
        end = time.monotonic() + 10
        while servers.counts(address)["GET"] == before and time.monotonic() < end:
            time.sleep(0.01)
        assert servers.counts(address)["GET"] > before
        pixels, failures = web.reader.read_patches(wanted(web), announced=True)
        announced = servers.counts(address)["GET"] - before
        web.reader.read_patches(wanted(web))
        assert servers.counts(address)["GET"] - before == 2 * announced
    assert not failures
    assert (pixels == local.reader.read_patches(wanted(local))[0]).all()
