"""Artifacts that are none, or not the right ones: each verb says so with exit 3."""

import json
from collections.abc import Callable
from pathlib import Path

import badfiles
import polars as pl
import pytest
from goodfiles import Good
from processes import pathfm
from refusals import refused

VERBS: dict[str, tuple[str, list[str]]] = {
    "mask": ("slides", ["--method", "otsu", "-o", "out.parquet"]),
    "sample": ("tissue", ["--n", "4", "-o", "out.parquet"]),
    "pretrain": ("tissue", ["--recipe", "tiny", "-o", "run"]),
    "embed": ("patches", ["--model", "random/vit_tiny_patch16_224", "-o", "out.parquet"]),
    "odcorr": ("embeddings", ["-o", "out.parquet"]),
    "show": ("slides", []),
}
"""Verb to the kind it reads and its other arguments."""

NO_ARTIFACTS: dict[str, badfiles.Make] = {
    "missing": lambda folder: folder / "missing.parquet",
    "empty": badfiles.raw(b"", ".parquet"),
    "text": badfiles.raw(b"slide,uri\na,b\n", ".parquet"),
    "zeros": badfiles.raw(bytes(4096), ".parquet"),
    "magic-only": badfiles.raw(b"PAR1" + bytes(40) + b"PAR1", ".parquet"),
    "footer-length": badfiles.raw(b"PAR1" + bytes(40) + b"\xff\xff\xff\x7fPAR1", ".parquet"),
    "folder": badfiles.folder_instead,
    "dangling-link": badfiles.dangling_link,
    "link-loop": badfiles.link_loop,
    "fifo": badfiles.pipe_instead,
    "device": badfiles.device_instead,
}


def run(verb: str, folder: Path, path: Path, words: str = "", codes: tuple[int, ...] = (3,)) -> str:
    return refused(folder, verb, path, *VERBS[verb][1], codes=codes, words=words)


FEW = ("missing", "text", "folder", "fifo")
"""What the other verbs are tried with: all of them read through the same function."""


@pytest.mark.parametrize(
    ("verb", "what"),
    [(verb, what) for verb in VERBS for what in (NO_ARTIFACTS if verb == "mask" else FEW)],
)
def test_no_artifact(verb: str, what: str, tmp_path: Path) -> None:
    # embed takes a folder for one of images, and says so as a usage error.
    codes = (2,) if (verb, what) == ("embed", "folder") else (3,)
    run(verb, tmp_path, NO_ARTIFACTS[what](tmp_path), "bad|missing", codes)


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.75, 0.95, 1.5])
@pytest.mark.parametrize("verb", ["mask", "sample", "embed", "odcorr"])
def test_truncated(verb: str, share: float, good: Good, tmp_path: Path) -> None:
    path = badfiles.cut(good.of_kind(VERBS[verb][0]), share)(tmp_path)
    run(verb, tmp_path, path, "bad")


KINDS = ("slides", "tissue", "patches", "embeddings", "checkpoint", "scores")
TAKES = {
    "mask": {"slides"},
    "sample": {"tissue"},
    "pretrain": {"tissue", "patches"},
    "embed": {"tissue", "patches", "checkpoint"},
    "odcorr": {"embeddings", "checkpoint"},
}


@pytest.mark.parametrize(
    ("verb", "kind"), [(v, k) for v, takes in TAKES.items() for k in KINDS if k not in takes]
)
def test_wrong_kind(verb: str, kind: str, good: Good, tmp_path: Path) -> None:
    told = run(verb, tmp_path, good.of_kind(kind), f"is of kind {kind}; .* is needed here")
    assert f"`pathfm {VERBS[verb][0].removesuffix('s')}" not in told or "hint" in told


DAMAGED: dict[str, Callable[[Path], badfiles.Make]] = {
    "no-json": lambda good: badfiles.described_as(good, "{"),
    "a-list": lambda good: badfiles.described_as(good, "[]"),
    "null": lambda good: badfiles.described_as(good, "null"),
    "deep": lambda good: badfiles.described_as(good, "[" * 100_000),
    "no-schema": lambda good: badfiles.retold(good, schema=None),
    "newer": lambda good: badfiles.retold(good, schema="pathfm.artifact/99"),
    "other-schema": lambda good: badfiles.retold(good, schema="x"),
    "unknown-kind": lambda good: badfiles.retold(good, kind="virus"),
    "kind-number": lambda good: badfiles.retold(good, kind=7),
    "kind-list": lambda good: badfiles.retold(good, kind=["slides"]),
    "parents-number": lambda good: badfiles.retold(good, parents=3),
    "settings-list": lambda good: badfiles.retold(good, settings=[1]),
    "files-list": lambda good: badfiles.retold(good, files=["tiles"]),
    "files-number": lambda good: badfiles.retold(good, files={"tiles": 5}),
    "files-nul": lambda good: badfiles.retold(good, files={"tiles": "a\0b"}),
    "files-none": lambda good: badfiles.retold(good, files={}),
    "files-up": lambda good: badfiles.retold(good, files={"tiles": "../../../etc/passwd"}),
    "files-absolute": lambda good: badfiles.retold(good, files={"tiles": "/etc/passwd"}),
    "files-zero": lambda good: badfiles.retold(good, files={"tiles": "/dev/zero"}),
    "rows-text": lambda good: badfiles.retold(good, rows="many"),
    "metrics-text": lambda good: badfiles.retold(good, metrics="none"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_description(what: str, good: Good, tmp_path: Path) -> None:
    run("mask", tmp_path, DAMAGED[what](good.slides)(tmp_path), "bad|passwd|zero")


def levels(**changes: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Rows whose first level has other values."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        rows = frame.to_dicts()
        for row in rows:
            row["levels"] = [{**row["levels"][0], **changes}, *row["levels"][1:]]
        return pl.DataFrame(rows, schema=frame.schema)

    return change


def column(name: str, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Rows with another value in a column."""
    return lambda frame: frame.with_columns(pl.lit(value).cast(frame.schema[name]).alias(name))


ROWS: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "no-uri": lambda frame: frame.drop("uri"),
    "no-levels": lambda frame: frame.drop("levels"),
    "levels-null": column("levels", None),
    "levels-empty": lambda frame: frame.with_columns(pl.col("levels").list.head(0)),
    "levels-text": lambda frame: frame.with_columns(levels=pl.lit("none")),
    "uri-number": lambda frame: frame.with_columns(uri=pl.lit(7)),
    "mpp-zero": column("mpp", 0.0),
    "mpp-negative": column("mpp", -1.0),
    "mpp-text": lambda frame: frame.with_columns(mpp=pl.lit("x")),
    "width-zero": levels(width_px=0),
    "width-huge": levels(width_px=1 << 40),
    "tile-zero": levels(tile_width_px=0),
    "tile-negative": levels(tile_height_px=-64),
    "tiles-huge": levels(tiles=1 << 40),
    "tiles-negative": levels(tiles=-1),
}


@pytest.mark.parametrize("what", ROWS)
def test_damaged_rows(what: str, good: Good, tmp_path: Path) -> None:
    path = badfiles.reframed(good.slides, ROWS[what])(tmp_path)
    run("mask", tmp_path, path, "bad")


def test_an_id_that_no_file_name_can_hold(good: Good, tmp_path: Path) -> None:
    path = badfiles.reframed(good.slides, column("slide", "a\0\x1bb"))(tmp_path)
    more = ["--preview", "shown", "--geojson", "shapes"]
    done = pathfm("mask", path, *VERBS["mask"][1], *more, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert [file.name for file in (tmp_path / "shapes").iterdir()] == ["a%00%1Bb.geojson"]


SLIDES: dict[str, str] = {
    "no-base64": "a",
    "no-parquet": "AAAA",
    "empty": "",
    "not-ascii": "\u00e9",
}


@pytest.mark.parametrize("what", SLIDES)
def test_damaged_table_in_the_metadata(what: str, good: Good, tmp_path: Path) -> None:
    more = {"pathfm.table.slides": SLIDES[what]}
    path = badfiles.attached(good.patches, more)(tmp_path)
    run("embed", tmp_path, path, "bad.parquet has a damaged table in its metadata")


@pytest.mark.parametrize("field", [{"first_tile": 1 << 40}, {"first_offset": -5}, {"prefix": 99}])
def test_a_row_that_points_beyond_the_tile_table_fails(
    field: dict[str, int], good: Good, tmp_path: Path
) -> None:
    path = badfiles.reframed(good.slides, levels(**field))(tmp_path)
    done = pathfm("mask", path, *VERBS["mask"][1], cwd=tmp_path)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert "its tiles are not in" in pl.read_parquet(tmp_path / "out.parquet")["error"][0]


@pytest.mark.parametrize(
    "make",
    [
        badfiles.raw(b"", ".safetensors"),
        badfiles.raw(bytes(64), ".safetensors"),
        badfiles.safetensors({}),
        badfiles.safetensors(b"[" * 100_000),
        badfiles.safetensors({}, size=1 << 62),
        badfiles.safetensors({"__metadata__": {"pathfm.tiles": "{}"}}),
        badfiles.safetensors(
            {
                "__metadata__": {"pathfm.tiles": json.dumps({"schema": "pathfm.tiles/1", "id": 1})},
                "offsets": {"dtype": "U64", "shape": [1 << 40], "data_offsets": [0, 1 << 43]},
            }
        ),
    ],
)
def test_damaged_tile_table(make: badfiles.Make, good: Good, tmp_path: Path) -> None:
    tiles = make(tmp_path)
    path = badfiles.retold(good.slides, files={"tiles": tiles.name})(tmp_path)
    run("mask", tmp_path, path, "no tile table")
