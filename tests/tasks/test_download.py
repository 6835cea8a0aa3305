"""Downloads from a real local server: resumed, checked, refused where unsafe."""

import gzip
import hashlib
import zipfile
from pathlib import Path

import pytest
import servers

from pathfm_cli import errors
from pathfm_cli.tasks import download
from pathfm_cli.tasks.datasets import base, catalogue

CONTENT = bytes(range(256)) * 5000
FACTS = catalogue.find("pcam").facts


def resource(address: str, name: str, content: bytes, **more: object) -> base.Resource:
    values: dict[str, object] = {
        "url": f"{address}/{name}",
        "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "makes": name.removesuffix(".gz").removesuffix(".zip"),
        "max_unpacked_bytes": 10_000_000,
    }
    return base.Resource(**{**values, **more})  # type: ignore[arg-type]


def archive(path: Path, names: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in names.items():
            file.writestr(name, content)
    return path.read_bytes()


def test_gz_is_fetched_unpacked_and_known_afterwards(tmp_path: Path) -> None:
    origin, root = tmp_path / "origin", tmp_path / "root"
    origin.mkdir()
    packed = gzip.compress(CONTENT)
    (origin / "x.h5.gz").write_bytes(packed)
    with servers.web(origin) as address:
        wanted = [resource(address, "x.h5.gz", packed)]
        assert download.download(FACTS, wanted, root) == ["x.h5"]
        assert (root / "x.h5").read_bytes() == CONTENT
        assert [path.name for path in root.iterdir()] == ["x.h5"]
        before = servers.counts(address)
        assert download.download(FACTS, wanted, root) == []
        assert servers.counts(address) == before


def test_a_broken_download_goes_on_from_its_part(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(CONTENT)
    root = tmp_path / "root"
    root.mkdir()
    (root / "x.gz.part").write_bytes(CONTENT[:1_000_000])
    seen = []
    with servers.web(tmp_path) as address:
        path = download.fetch(
            resource(address, "x.gz", CONTENT), root, "pcam", lambda *step: seen.append(step)
        )
    assert path.read_bytes() == CONTENT
    assert seen == [(1_280_000, 1_280_000)]


def test_connections_that_break_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(CONTENT)
    root = tmp_path / "root"
    root.mkdir()
    with servers.web(tmp_path, "--cut", "0.5", "--fail", "0.2") as address:
        wanted = resource(address, "x.gz", CONTENT)
        path = download.fetch(wanted, root, "pcam", pause_s=0.01)
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(CONTENT)
    root = tmp_path / "root"
    root.mkdir()
    with servers.web(tmp_path) as address:
        with pytest.raises(errors.PathfmError, match="has the checksum"):
            download.fetch(resource(address, "x.gz", b"other"), root, "pcam")
        with pytest.raises(errors.PathfmError, match="answers 404"):
            download.fetch(resource(address, "y.gz", b"other"), root, "pcam")
    assert list(root.iterdir()) == []


def test_the_hint_of_a_failure_is_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    mirror, root = "http://127.0.0.1:1", tmp_path / "my data"
    with pytest.raises(errors.PathfmError, match=r"0 bytes are here") as caught:
        download.download(FACTS, download.sources(FACTS, mirror), root, mirror=mirror)
    command = "pathfm tasks pcam --download --accept-licence"
    assert caught.value.hint == f"{command} --data '{root}' --mirror {mirror}"


def test_zip_keeps_only_what_belongs(tmp_path: Path) -> None:
    wanted = resource("http://h", "c.zip", b"", makes="C", keep="C/")
    archive(tmp_path / "c.zip", {"C/ADI/a.tif": b"a", "__MACOSX/b": b"b"})
    download.unpack(tmp_path / "c.zip", tmp_path, wanted)
    assert (tmp_path / "C" / "ADI" / "a.tif").read_bytes() == b"a"
    assert not (tmp_path / "__MACOSX").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"C/../../evil": b"x"}, "outside its folder"),
        ({"/C/evil": b"x"}, "outside its folder"),
        ({"C/large": b"x" * 2000}, "unpacks to 2,000 bytes"),
        ({"D/a": b"x"}, "holds no C/"),
    ],
)
def test_unsafe_archives_are_refused(tmp_path: Path, names: dict[str, bytes], message: str) -> None:
    keep = "/C/" if "/C/evil" in names else "C/"
    wanted = resource("http://h", "c.zip", b"", keep=keep, max_unpacked_bytes=1000)
    archive(tmp_path / "c.zip", names)
    with pytest.raises(errors.PathfmError, match=message):
        download.unpack(tmp_path / "c.zip", tmp_path, wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["c.zip"]


def test_a_bomb_and_a_cut_archive(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(5000))
    (tmp_path / "x.gz").write_bytes(packed)
    with pytest.raises(errors.PathfmError):
        download.unpack(
            tmp_path / "x.gz", tmp_path, resource("http://h", "x.gz", b"", max_unpacked_bytes=99)
        )
    (tmp_path / "x.gz").write_bytes(packed[:-9])
    with pytest.raises(errors.PathfmError, match="damaged"):
        download.unpack(tmp_path / "x.gz", tmp_path, resource("http://h", "x.gz", b""))
    assert not (tmp_path / "x").exists()


def test_sources() -> None:
    mirrored = download.sources(FACTS, "https://mirror.example/pcam/")
    assert [one.url.rpartition("/")[0] for one in mirrored] == ["https://mirror.example/pcam"] * 6
    with pytest.raises(errors.UsageError, match="no http or https"):
        download.sources(FACTS, "ftp://mirror")
    with pytest.raises(errors.UsageError, match="mhist cannot be downloaded"):
        download.sources(catalogue.find("mhist").facts)


def test_what_a_gz_unpacks_to_has_a_checksum_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(CONTENT))
    right = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    wanted = resource("http://h", "x.gz", b"", unpacked_md5=right[::-1])
    with pytest.raises(errors.PathfmError, match=f"unpacks to the checksum {right}, not"):
        download.unpack(tmp_path / "x.gz", tmp_path, wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gz"]
    download.unpack(
        tmp_path / "x.gz", tmp_path, resource("http://h", "x.gz", b"", unpacked_md5=right)
    )
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_pcam_states_both_checksums_of_each_file() -> None:
    both = {(one.md5, one.unpacked_md5) for one in FACTS.resources}
    assert len(both) == 6 and len({md5 for pair in both for md5 in pair}) == 12
    assert ("d8c2d60d490dbd479f8199bdfa0cf6ec", "2614b2e6717d6356be141d9d6dbfcb7e") in both
