"""Made-up secrets in addresses and the environment: nowhere in what is printed or written."""

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import badfiles
import polars as pl
import pytest
from goodfiles import Good
from processes import pathfm
from refusals import refused

from pathfm_cli import addresses, artifacts, columns, errors
from pathfm_cli.wsi import cache, remote

SECRET = "TOPSECRET7"
SAS = f"sv=2024-01-01&sig={SECRET}%3D&se=2030"


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers 403 and repeats the address it was asked for, as some stores do."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = f"<Error><Message>{self.path}</Message></Error>".encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


def everything(folder: Path, done: object) -> str:
    """All that was printed and written."""
    written = [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    return "".join([done.stdout, done.stderr, *written])  # type: ignore[attr-defined]


@pytest.mark.parametrize("uri", ["s3://bucket/x.svs", "az://box/x.svs", "az://box/folder/"])
def test_credentials_of_the_environment(uri: str, server: str, tmp_path: Path) -> None:
    environment = {
        **{"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "x"},
        **{"AWS_SESSION_TOKEN": f"{SECRET}-2", "AWS_ENDPOINT_URL": server},
        **{"AZURE_STORAGE_ACCOUNT_NAME": "acct", "AZURE_STORAGE_SAS_KEY": SAS},
        **{"AZURE_ENDPOINT": server},
    }
    Refusing.asked.clear()
    done = pathfm("index", uri, "-o", "s.parquet", cwd=tmp_path, env=environment)
    assert done.returncode in (3, 4), done.stderr
    assert "403" in everything(tmp_path, done)
    assert SECRET not in everything(tmp_path, done)
    # The secret did go where it belongs, or there was nothing to leak.
    assert not uri.startswith("az") or any(SECRET in path for path in Refusing.asked)


@pytest.mark.parametrize(
    "uri",
    [
        f"https://me:{SECRET}@host/x.svs",
        f"https://host/x.svs?X-Amz-Signature={SECRET}",
        f"s3://AK:{SECRET}@bucket/x.svs",
        f"az://box/x.svs?sv=1&sig={SECRET}",
        f"ftp://me:{SECRET}@host/x.svs",
    ],
)
@pytest.mark.parametrize("way", ["argument", "table", "stdin"])
def test_addresses_with_secrets(uri: str, way: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    (tmp_path / "list.csv").write_text(f"uri\n{uri}\n")
    argument = {"argument": uri, "table": str(tmp_path / "list.csv"), "stdin": "-"}[way]
    stdin = f"{uri}\n" if way == "stdin" else None
    done = pathfm("index", argument, "-o", "s.parquet", cwd=place, stdin=stdin)
    assert done.returncode == 2, done.stderr
    assert "cannot be kept in an index" in done.stderr
    assert SECRET not in everything(place, done)


URI = f"https://me:{SECRET}@host/x?sig={SECRET}"
TINY = ["--model", "random/test_vit"]
COMMANDS: dict[str, list[str]] = {
    "mask": ["mask", "{}", "--method", "otsu", "-o", "o.parquet"],
    "mask-weights": ["mask", "s.parquet", "--weights", "{}", "-o", "o.parquet"],
    "mask-annotations": ["mask", "s.parquet", "--annotations", "{}", "-o", "o.parquet"],
    "sample": ["sample", "{}", "--n", "4", "-o", "o.parquet"],
    "pretrain": ["pretrain", "{}", "--recipe", "tiny", "-o", "run"],
    "pretrain-init": ["pretrain", "t.parquet", "--recipe", "tiny", "--init", "{}", "-o", "run"],
    "pretrain-watch": ["pretrain", "t.parquet", "--recipe", "tiny", "--watch", "{}", "-o", "run"],
    "pretrain-recipe": ["pretrain", "t.parquet", "--recipe", "{}", "-o", "run"],
    "embed": ["embed", "{}", *TINY, "-o", "o.parquet"],
    "embed-model": ["embed", "p.parquet", "--model", "{}", "-o", "o.parquet"],
    "embed-hub": ["embed", "p.parquet", "--model", "hf-hub:{}", "-o", "o.parquet"],
    "embed-images": ["embed", "--images", "{}", *TINY, "-o", "o.parquet"],
    "embed-dask": ["embed", "p.parquet", *TINY, "--dask", "{}", "-o", "o.parquet"],
    "dask": ["index", "x.svs", "--dask", f"tcp://me:{SECRET}@127.0.0.1:9", "-o", "o.parquet"],
    "probe": ["probe", "{}", "-o", "probed"],
    "segment": ["segment", "--images", "{}", *TINY, "-o", "segmented"],
    "odcorr": ["odcorr", "{}"],
    "report": ["report", "{}", "-o", "r.html"],
    "show": ["show", "{}"],
    "index-metadata": ["index", "x.svs", "--metadata", "{}", "-o", "o.parquet"],
    "index-manifest": ["index", "--gdc-manifest", "{}", "-o", "o.parquet"],
    "index-root": ["index", "x.svs", "--root", "{}", "-o", "o.parquet"],
}
"""Where a hurried user puts an address that is none of a slide."""


@pytest.mark.parametrize("name", COMMANDS)
def test_addresses_elsewhere_are_not_repeated(name: str, good: Good, tmp_path: Path) -> None:
    for kind in ("slides", "tissue", "patches"):
        (tmp_path / f"{kind[0]}.parquet").symlink_to(good.of_kind(kind))
    (tmp_path / "x.svs").symlink_to(good.slide)
    told = refused(tmp_path, *(w.format(URI) for w in COMMANDS[name]), codes=(1, 2, 3))
    assert SECRET not in told


OUTPUTS: dict[str, list[str]] = {
    "index": ["index", "x.svs", "-o", "{}"],
    "mask": ["mask", "s.parquet", "--method", "otsu", "-o", "{}"],
    "mask-preview": ["mask", "s.parquet", "--method", "otsu", "-o", "o.parquet", "--preview", "{}"],
    "mask-geojson": ["mask", "s.parquet", "--method", "otsu", "-o", "o.parquet", "--geojson", "{}"],
    "sample": ["sample", "t.parquet", "--n", "4", "-o", "{}"],
    "sample-preview": ["sample", "t.parquet", "--n", "4", "-o", "o.parquet", "--preview", "{}"],
    "pretrain": ["pretrain", "t.parquet", "--recipe", "tiny", "-o", "{}"],
    "pretrain-patches": ["pretrain", "t.parquet", "--recipe", "tiny", "-o", "run"]
    + ["--patch-cache", "{}"],
    "embed": ["embed", "p.parquet", *TINY, "-o", "{}"],
    "embed-cache": ["embed", "p.parquet", *TINY, "-o", "o.parquet", "--cache", "{}"],
    "odcorr": ["odcorr", "e.parquet", "-o", "{}"],
    "probe": ["probe", "e.parquet", "-o", "{}"],
    "segment": ["segment", "--images", "x", *TINY, "-o", "{}"],
    "report": ["report", "e.parquet", "-o", "{}.html"],
    "show": ["show", "e.parquet", "--picture", "{}"],
    "demo": ["demo", "-o", "{}"],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_address_is_no_output(name: str, good: Good, tmp_path: Path) -> None:
    for kind in ("slides", "tissue", "patches", "embeddings"):
        (tmp_path / f"{kind[0]}.parquet").symlink_to(good.of_kind(kind))
    (tmp_path / "x.svs").symlink_to(good.slide)
    words = [word.format(URI) for word in OUTPUTS[name]]
    assert SECRET not in refused(tmp_path, *words, codes=(2,), words="is an address")


def test_nor_is_it_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.FOLDER_VARIABLE, URI)
    with pytest.raises(errors.UsageError, match="PATHFM_CACHE=https://.* is an address"):
        cache.current()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["slides", "tissue"])
def test_an_artifact_with_a_secret_is_not_read(kind: str, good: Good, tmp_path: Path) -> None:
    uri = pl.lit(f"http://127.0.0.1:9/x.svs?sig={SECRET}").alias("uri")
    path = badfiles.reframed(good.of_kind(kind), lambda frame: frame.with_columns(uri))(tmp_path)
    verb = {"slides": ["mask", "--method", "otsu"], "tissue": ["sample", "--n", "4"]}[kind]
    told = refused(tmp_path, *verb, path, "-o", "o.parquet", codes=(3,), words="holds an address")
    assert SECRET not in told


def test_nor_one_whose_attached_slides_hold_it(good: Good, tmp_path: Path) -> None:
    slides = artifacts.read_table(good.patches).attached["slides"]
    buffer = io.BytesIO()
    slides.with_columns(uri=pl.lit(f"s3://k:{SECRET}@b/x.svs")).write_parquet(buffer)
    text = base64.b64encode(buffer.getvalue()).decode()
    path = badfiles.attached(good.patches, {"pathfm.table.slides": text})(tmp_path)
    told = refused(tmp_path, "embed", path, *TINY, "-o", "o.parquet", codes=(3,), words="holds an")
    assert SECRET not in told


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AK:{SECRET}/more@bucket/x.svs",
        f"s3://AK:{SECRET} more@bucket/x.svs",
        f"https://host/a b.svs?{SECRET}",
        f"https://host/x.svs;token={SECRET}",
        f"s3://bucket/x.svs#sig={SECRET}",
        f"s3://bucket/x.svs?signature={SECRET}",
        f"s3://bucket/x.svs?AWSAccessKeyId={SECRET}",
        f"gs://bucket/x.svs?access_token={SECRET}",
        f"gs://bucket/x.svs?x-goog-signature={SECRET}",
        f"https://host/x%3FX-Amz-Signature={SECRET}",
        f"az://box/x.svs%253Fsig%3D{SECRET}",
    ],
)
def test_spellings_of_secrets(uri: str) -> None:
    with pytest.raises(errors.SlideError, match="cannot be kept in an index") as raised:
        remote.split(uri)
    assert SECRET not in str(raised.value)
    with pytest.raises(errors.InputError, match="x.parquet holds an address"):
        columns.refuse_secrets("x.parquet", pl.DataFrame({"uri": ["s3://b/plain.svs", uri]}))


@pytest.mark.parametrize("uri", ["s3://b/a?b#c;d.svs", "s3://b/k@2x.svs", "http://h:8/a@b.svs"])
def test_plain_addresses_are_kept(uri: str) -> None:
    assert not addresses.holds_secret(uri)
    columns.refuse_secrets("x.parquet", pl.DataFrame({"uri": [uri]}))


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("pathfm: 'https:/me:S@h/x' is none.", "pathfm: 'https:/h/x' is none."),
        ("tcp://me:S T@h:1 and s3://b/a@b.svs", "tcp://h:1 and s3://b/a@b.svs"),
        ("http://h:80/a@b.svs: gone", "http://h:80/a@b.svs: gone"),
        ("http://[::1]:80/a@b.svs: gone", "http://[::1]:80/a@b.svs: gone"),
        ("http://h/x?q=S: gone", "http://h/x?... gone"),
        ("az://c/x&sig=S gone", "az://c/x?... gone"),
        ("a/what?.svs, a@b: gone", "a/what?.svs, a@b: gone"),
    ],
)
def test_texts_are_printed_without_secrets(text: str, printed: str) -> None:
    assert addresses.without_secrets(text) == printed
