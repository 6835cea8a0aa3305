"""Bad tables, manifests, pipes, recipes, features and outputs: one sentence, and no file."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import badfiles
import imagecodecs
import numpy as np
import polars as pl
import pytest
from goodfiles import Good
from processes import pathfm
from refusals import refused

TABLES: dict[str, tuple[str, str, int]] = {
    "empty": ("", "cannot be read", 3),
    "no-column": ("a,b\n1,2\n", "lists no slides", 2),
    "no-rows": ("path\n", "lists no slides", 3),
    "null-path": ("path,organ\n,x\n", "row without a path", 2),
    "two-columns": ("path,path\na.svs,b.svs\n", "two columns path", 2),
    "reserved": ("path,mpp\na.svs,1\n", "which the index writes itself", 2),
    "up": ("path\n../../etc/passwd.svs\n", "leads out of the table's folder", 2),
    "up-inside": ("path\nx/../../y.svs\n", "leads out of the table's folder", 2),
    "same-id": ("path\na/x.svs\nb/x.svs\n", "Two slides have the id x", 2),
    "signed": ("uri\nhttps://h/x.svs?X-Amz-Signature=SECRET\n", "https://h/x.svs: an address", 2),
    "password": ("uri\nhttps://me:SECRET@h/x.svs\n", "https://h/x.svs: an address", 2),
    "bucket-password": ("uri\ns3://KEY:SECRET@b/x.svs\n", "s3://b/x.svs: an address", 2),
    "signed-key": ("uri\naz://c/x.svs?sv=1&sig=SECRET\n", "az://c/x.svs: an address", 2),
    "scheme": ("uri\nfile:///etc/passwd.svs\n", "file:// is not known", 2),
    "javascript": ("uri\njavascript://x/a.svs\n", "is not known", 2),
    "no-bucket": ("uri\ns3:///x.svs\n", "no bucket", 2),
    "nul": ("path\na\0b.svs\n", "is no path", 2),
    "id-nul": ('path,slide\na.svs,"a\0b"\n', "has the slide id 'a.x00b', with control", 2),
    "id-newline": ('path,slide\na.svs,"a\nb"\n', "with control characters", 2),
    "id-escape": ('path,slide\na.svs,"\x1b[2J"\n', "with control characters", 2),
    "ragged": ('path,a\n"x.svs\n', "cannot be read", 3),
}


@pytest.mark.parametrize("name", TABLES)
def test_table_of_slides(name: str, tmp_path: Path) -> None:
    text, words, code = TABLES[name]
    (tmp_path / "list.csv").write_text(text)
    told = refused(
        tmp_path, "index", "list.csv", "-o", "s.parquet", codes=(code, 2, 3), words=words
    )
    assert "SECRET" not in told


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, imagecodecs.zstd_encode])
@pytest.mark.parametrize("option", ["", "--metadata", "--gdc-manifest"])
def test_packed_table(pack: Callable[[bytes], bytes], option: str, tmp_path: Path) -> None:
    """polars would unpack it silently, to any size."""
    (tmp_path / "x.csv").write_bytes(pack(b"path,slide\na.svs,a\n"))
    arguments = ["index", *(["a.svs"] if option == "--metadata" else []), *filter(None, [option])]
    refused(tmp_path, *arguments, "x.csv", "-o", "s.parquet", codes=(3,), words="is compressed")


def test_parquet_that_would_end_the_process(tmp_path: Path) -> None:
    """Its page claims -2 values, for which polars would reserve 2 exabytes."""
    frame = pl.DataFrame({"path": ["a.svs"]})
    frame.write_parquet(tmp_path / "x.parquet", compression="uncompressed", statistics=False)
    data = (tmp_path / "x.parquet").read_bytes()
    first = data.index(b"\x15\x02", 4)  # the first count of 1: of the dictionary or the data page
    (tmp_path / "x.parquet").write_bytes(data[: first + 1] + b"\x03" + data[first + 2 :])
    refused(tmp_path, "index", "x.parquet", "-o", "s.parquet", codes=(3,), words="it is damaged")


def test_a_link_that_leads_out_of_the_root_is_refused(good: Good, tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "a.tif").symlink_to(good.slide)
    arguments = ["index", "cohort", "--root", "cohort", "-o", "s.parquet"]
    refused(tmp_path, *arguments, codes=(2,), words="not below --root")


def test_a_slides_id_that_is_a_path_writes_nothing_outside(good: Good, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.csv").write_text(f"path,slide\n{good.slide},../../evil\n")
    done = pathfm("index", "in/list.csv", "-o", "s.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    previews = ["--preview", "previews", "--geojson", "shapes"]
    done = pathfm(
        "mask", "s.parquet", "--method", "otsu", "-o", "t.parquet", *previews, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in tmp_path.rglob("*evil*")} == {"previews", "shapes"}


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png"])
def test_a_table_of_images_stays_below_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.csv").write_text(f"path\n{name}\n")
    arguments = [
        "embed",
        "--images",
        "in/list.csv",
        "--model",
        "random/test_vit",
        "-o",
        "e.parquet",
    ]
    refused(tmp_path, *arguments, codes=(2,), words="leads out of the table's folder")


def test_an_unknown_users_home_is_a_name(tmp_path: Path) -> None:
    arguments = ["index", "~nosuchuser/a.svs", "-o", "s.parquet"]
    refused(tmp_path, *arguments, codes=(3,), words="a.svs does not exist")
    (tmp_path / "list.csv").write_text("path\n~nosuchuser/a.svs\n")
    done = pathfm("index", "list.csv", "-o", "s.parquet", cwd=tmp_path)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert pl.read_parquet(tmp_path / "s.parquet")["error"].to_list() == ["does not exist"]


@pytest.mark.parametrize("value", ["AK\n", "\x01"])
def test_a_key_that_no_header_can_hold(value: str, tmp_path: Path) -> None:
    environment = {"AWS_ACCESS_KEY_ID": value, "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "x"}
    done = pathfm("index", "s3://b/x/", "-o", "s.parquet", cwd=tmp_path, env=environment)
    assert done.returncode == 3
    assert done.stderr.startswith("pathfm: AWS_ACCESS_KEY_ID holds a control character.\nhint: ")
    assert list(tmp_path.iterdir()) == []


GDC = "id\tfilename\tmd5\tsize\tstate\n"
UUID = "0123abcd-0123-0123-0123-0123456789ab"
MANIFESTS: dict[str, tuple[str, str]] = {
    "empty": ("", "cannot be read"),
    "commas": ("id,filename,md5,size,state\n", "no GDC manifest"),
    "no-slide": (f"{GDC}{UUID}\ta.txt\t0\t1\tx\n", "lists no slide"),
    "up": (f"{GDC}{UUID}\t../a.svs\t0\t1\tx\n", "damaged row"),
    "absolute": (f"{GDC}{UUID}\t/etc/a.svs\t0\t1\tx\n", "damaged row"),
    "id-up": (f"{GDC}../../x\ta.svs\t0\t1\tx\n", "damaged row"),
    "id-empty": (f"{GDC}\ta.svs\t0\t1\tx\n", "damaged row"),
    "size": (f"{GDC}{UUID}\ta.svs\t0\t-1\tx\n", "damaged row"),
    "size-huge": (f"{GDC}{UUID}\ta.svs\t0\t{'9' * 40}\tx\n", "damaged row"),
    "control": (f"{GDC}{UUID}\ta\x07.svs\t0\t1\tx\n", "damaged row"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest(name: str, tmp_path: Path) -> None:
    text, words = MANIFESTS[name]
    (tmp_path / "m.txt").write_text(text)
    arguments = ["index", "--gdc-manifest", "m.txt", "-o", "s.parquet"]
    refused(tmp_path, *arguments, codes=(3,), words=words)


def record(**changes: object) -> str:
    """A line of the pipe."""
    whole = {"schema": "pathfm.artifact/1", "kind": "slides", "id": "0" * 12, "path": "x.parquet"}
    return json.dumps(whole | changes)


PIPES: dict[str, tuple[str, int]] = {
    "nothing": ("", 3),
    "blank": ("\n\n", 3),
    "binary": ("PAR1\0\0\0", 3),
    "half-a-record": ('{"schema":"pathfm.artifact/1","ki', 3),
    "missing-file": (record(), 3),
    "newer": (record(schema="pathfm.artifact/2"), 3),
    "other-schema": (record(schema="x/1"), 3),
    "no-path": (record(path=None), 3),
    "kind-list": (record(kind=["slides"]), 3),
    "other-kind": (record(kind="scores"), 3),
    "two": (record() + "\n" + record(path="y.parquet"), 2),
    "deep": ("{" + '"a":[' * 50_000, 3),
    "path-up": ("../../../etc/passwd", 3),
    "escape-codes": ("\x1b[2J\x1b]0;title\x07", 3),
}


@pytest.mark.parametrize("name", PIPES)
def test_pipe(name: str, tmp_path: Path) -> None:
    text, code = PIPES[name]
    told = refused(tmp_path, "mask", "-o", "t.parquet", codes=(code,), stdin=text)
    assert "\x1b" not in told


RECIPES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "required"),
    "no-toml": ("[", "not valid TOML"),
    "binary": (b"\xff\xfe\x00", "TOML|UTF-8|text"),
    "unknown": ("[optim]\nbase_Ir = 1\n", "Unknown setting|required"),
    "deep": ("a = " + "[" * 5000, "TOML"),
}
SETTINGS: dict[str, str] = {
    "train.steps=-1": "train.steps",
    "train.steps=many": "train.steps",
    "train.steps=1e99": "train.steps",
    "train.batch_size=0": "train.batch_size",
    "optim.base_lr=nan": "nan|finite|base_lr",
    "optim.base_lr=-1": "base_lr",
    "model.depth=1000000000": "depth",
    "data.mpp=[]": "mpp",
    "head.prototypes=0": "prototypes",
    "model.init=vit_of_nobody": "timm has no model called 'vit_of_nobody'",
    "model.init=local-dir:x": "There is no model 'local-dir:x'",
    "model.init=https://h/x": "There is no model 'https://h/x'",
    "x": "not of the form",
    "train.steps.more=1": "is a value",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, good: Good, tmp_path: Path) -> None:
    text, words = RECIPES[name]
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "r.toml").write_bytes(data)
    arguments = ["pretrain", good.tissue, "--recipe", "r.toml", "-o", "run"]
    refused(tmp_path, *arguments, codes=(2,), words=words)


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting(setting: str, good: Good, tmp_path: Path) -> None:
    arguments = ["pretrain", good.tissue, "--recipe", "tiny", "--set", setting, "-o", "run"]
    refused(tmp_path, *arguments, codes=(2,), words=SETTINGS[setting])


def sheet(*rows: object) -> badfiles.Make:
    """A foreign Parquet file with these values as `embedding`."""

    def make(folder: Path) -> Path:
        path = folder / "bad.parquet"
        pl.DataFrame({"embedding": list(rows)}).write_parquet(path)
        return path

    return make


NPY = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
FEATURES: dict[str, badfiles.Make] = {
    "pickle": badfiles.npy(np.array([badfiles.Bomb("system")], dtype=object)),
    "npy-text": badfiles.npy(np.array(["a"])),
    "npy-flat": badfiles.npy(np.zeros(4)),
    "npy-empty": badfiles.npy(np.zeros((0, 4))),
    "npy-claims": badfiles.npy(header=NPY % b"1099511627776, 4", data=bytes(64)),
    "npy-overflow": badfiles.npy(header=NPY % b"4611686018427387904, 16", data=bytes(64)),
    "npy-code": badfiles.npy(header=b"__import__('os').system('touch ran')"),
    "npy-deep": badfiles.npy(header=b"(" * 9000),
    "numbers": sheet(1.0, 2.0),
    "texts": sheet("a", "b"),
    "ragged": sheet([1.0], [1.0, 2.0]),
    "nan": sheet([1.0, float("nan")], [1.0, 2.0], [3.0, 1.0]),
    "all-null": sheet(None, None),
    "tensors": badfiles.safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features(name: str, tmp_path: Path) -> None:
    path = FEATURES[name](tmp_path)
    refused(tmp_path, "odcorr", path, "-o", "o.parquet", codes=(3,), words="bad")
    assert not (tmp_path / "ran").exists()


OUTPUTS: dict[str, Callable[[Path], str]] = {
    "foreign-file": lambda folder: str(badfiles.raw(b"mine", ".txt")(folder)),
    "folder": lambda folder: str(badfiles.folder_instead(folder)),
    "below-a-file": lambda folder: f"{badfiles.raw(b'x', '.txt')(folder)}/s.parquet",
    "device": lambda folder: "/dev/null",
    "no-name": lambda folder: "",
    "link": lambda folder: str(badfiles.dangling_link(folder)),
    "proc": lambda folder: "/proc/nowhere/s.parquet",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output(name: str, good: Good, tmp_path: Path) -> None:
    out = OUTPUTS[name](tmp_path)
    refused(tmp_path, "index", good.slide, "-o", out, codes=(2,))
