"""Made-up secrets in addresses and the environment: nowhere in what is printed or written."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import pathfm

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
